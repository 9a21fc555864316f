"""Laws of the batches of short sequences."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal

from lstm_jax.text import LengthBatches, pad_rows, split_rows
from lstm_jax.text.sequences import bucket_widths

sizes = st.integers(1, 6)
some_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=30)
some_rows = st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=5)

Batch = tuple[list[int], int]  # rows and their width


def padding(lengths: list[int], widths: tuple[int, ...]) -> int:
    return sum(min(width for width in widths if width >= n) - n for n in lengths)


@settings(max_examples=60)
@given(some_lengths, sizes)
def test_no_other_widths_need_less_padding(lengths: list[int], most: int) -> None:
    widths = bucket_widths(lengths, most)
    distinct = sorted(set(lengths))
    assert len(widths) == min(most, len(distinct))
    assert set(widths) <= set(distinct) and list(widths) == sorted(widths)
    others = itertools.combinations(distinct[:-1], len(widths) - 1)
    assert padding(lengths, widths) == min(
        padding(lengths, (*other, distinct[-1])) for other in others
    )


def test_two_thousand_distinct_lengths() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(1, 2001))
    # Uniform lengths are cut into equal parts.
    assert bucket_widths(lengths, 4) == (500, 1000, 1500, 2000)


def epoch_of(batches: LengthBatches, epoch: int) -> list[Batch]:
    steps = range(epoch * batches.batches, (epoch + 1) * batches.batches)
    return [(rows.tolist(), width) for rows, width in map(batches.batch, steps)]


@given(some_lengths, sizes, sizes, st.integers(0, 3))
def test_every_epoch_has_every_row_once_in_the_same_shapes(
    lengths: list[int], batch_size: int, most: int, seed: int
) -> None:
    batches = LengthBatches(np.array(lengths), batch_size, most, seed)
    assert batches.batches == math.ceil(len(lengths) / batch_size)
    unshuffled = [(rows.tolist(), width) for rows, width in batches.in_order()]
    order = [row for rows, _ in unshuffled for row in rows]
    assert order == sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    epochs = [unshuffled, *(epoch_of(batches, epoch) for epoch in range(3))]
    shapes = []
    for found in epochs:
        assert len(found) == batches.batches
        assert sorted(itertools.chain(*(rows for rows, _ in found))) == list(range(len(lengths)))
        for rows, width in found:
            longest = max(lengths[row] for row in rows)
            assert width == min(w for w in batches.widths if w >= longest), "not the narrowest"
        shapes.append(Counter((len(rows), width) for rows, width in found))
        # The rest is one batch; all others are full.
        assert sum(len(rows) < batch_size for rows, _ in found) == (len(lengths) % batch_size > 0)
        # Batches overlap in bucket at their ends only.
        buckets = [np.searchsorted(batches.widths, [lengths[r] for r in rows]) for rows, _ in found]
        ends = sorted((int(each.min()), int(each.max())) for each in buckets)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
    assert all(shape == shapes[0] for shape in shapes)


@given(some_lengths, sizes, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_batch_depends_on_seed_and_step_alone(
    lengths: list[int], batch_size: int, seed: int, random: Any
) -> None:
    uninterrupted, resumed = (
        LengthBatches(np.array(lengths), batch_size, 3, seed) for _ in range(2)
    )
    whole = [batch for epoch in range(3) for batch in epoch_of(uninterrupted, epoch)]
    for step in random.sample(range(len(whole)), len(whole)):
        rows, width = resumed.batch(step)
        assert rows.dtype == np.int64
        assert (rows.tolist(), width) == whole[step]
        rows[:] = -1  # a batch is the caller's own


def test_epochs_and_seeds_differ() -> None:
    orders = [
        epoch_of(LengthBatches(np.arange(1, 101), 10, 2, seed), epoch)
        for seed in range(2)
        for epoch in range(2)
    ]
    assert all(first != second for first, second in itertools.combinations(orders, 2))
    # Batches of both buckets are mixed, not one bucket after the other.
    assert all([width for _, width in order] != [50] * 5 + [100] * 5 for order in orders)


@given(st.integers(0, 50), st.floats(0, 1), st.none() | st.integers(0, 3))
def test_a_split_parts_all_rows(count: int, share: float, seed: int | None) -> None:
    heldout_count = round(share * count)
    if share > 0 and not 0 < heldout_count < count:
        assert str(count) in refusal(split_rows, count, share, seed)
        return
    train, heldout = split_rows(count, share, seed)
    assert train.dtype == heldout.dtype == np.int64
    assert len(heldout) == heldout_count
    assert sorted([*train, *heldout]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(heldout) > 0).all()
    assert all(map(np.array_equal, split_rows(count, share, seed), (train, heldout)))
    if seed is None:
        np.testing.assert_array_equal(heldout, np.arange(count - heldout_count, count))


def test_random_splits_differ_by_seed() -> None:
    splits = [tuple(split_rows(100, 0.2, seed)[1].tolist()) for seed in (None, 0, 1)]
    assert len(set(splits)) == 3


@pytest.mark.parametrize("side", ["front", "end"])
@given(some_rows, st.integers(0, 2), st.integers(0, 2))
def test_columns_hold_the_rows_and_padding(
    side: Any, lists: list[list[int]], wider: int, more: int
) -> None:
    width = max(map(len, lists), default=0) + wider or 1
    batch_size = len(lists) + more or 1
    rows = [np.array(row, np.int32) for row in lists]
    tokens, mask = pad_rows(rows, width=width, batch_size=batch_size, side=side)
    assert tokens.shape == mask.shape == (width, batch_size)
    assert tokens.dtype == np.int32 and mask.dtype == np.bool_
    for column, row in enumerate(lists + [[]] * (batch_size - len(lists))):
        filling = [0] * (width - len(row))
        expected = filling + row if side == "front" else row + filling
        assert tokens[:, column].tolist() == expected
        # No token of the rows is 0, so the padding is known by its value.
        np.testing.assert_array_equal(mask[:, column], tokens[:, column] > 0)

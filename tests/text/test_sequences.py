"""Laws of the batches of short sequences."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.text import (
    LengthBatches,
    bucket_widths,
    pad_rows,
    prediction_rows,
    prediction_steps,
    split_rows,
)

sizes = st.integers(1, 6)
some_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=30)
some_rows = st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=5)


def error_line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


def as_rows(lists: list[list[int]]) -> list[Any]:
    return [np.array(row, np.int32) for row in lists]


# Buckets


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


# Epochs


def epoch_of(batches: LengthBatches, epoch: int) -> list[tuple[list[int], int]]:
    pairs = (batches.batch(epoch, index) for index in range(batches.batches))
    return [(rows.tolist(), width) for rows, width in pairs]


@given(some_lengths, sizes, sizes, st.integers(0, 3))
def test_every_epoch_has_every_row_once_in_the_same_shapes(
    lengths: list[int], batch_size: int, most: int, seed: int
) -> None:
    widths = bucket_widths(lengths, most)
    batches = LengthBatches(np.array(lengths), batch_size, widths, seed)
    assert batches.batches == math.ceil(len(lengths) / batch_size)
    shapes = []
    for epoch in (*range(3), None):
        found = (
            [(rows.tolist(), width) for rows, width in batches.in_order()]
            if epoch is None
            else epoch_of(batches, epoch)
        )
        assert len(found) == batches.batches
        assert sorted(itertools.chain(*(rows for rows, _ in found))) == list(range(len(lengths)))
        for rows, width in found:
            longest = max(lengths[row] for row in rows)
            assert width == min(w for w in widths if w >= longest), "not the narrowest bucket"
        shapes.append(Counter((len(rows), width) for rows, width in found))
        # The rest is one batch; all others are full.
        assert sum(len(rows) < batch_size for rows, _ in found) == (len(lengths) % batch_size > 0)
    assert all(shape == shapes[0] for shape in shapes)


@given(some_lengths, sizes, st.integers(0, 3))
def test_batches_overlap_in_bucket_at_their_ends_only(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    widths = bucket_widths(lengths, 3)
    batches = LengthBatches(np.array(lengths), batch_size, widths, seed)
    buckets = np.searchsorted(widths, lengths)
    ends = sorted(
        (int(buckets[rows].min()), int(buckets[rows].max())) for rows, _ in epoch_of(batches, 0)
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


@given(some_lengths, sizes, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_batch_depends_on_seed_epoch_and_index_alone(
    lengths: list[int], batch_size: int, seed: int, random: Any
) -> None:
    def new() -> LengthBatches:
        return LengthBatches(np.array(lengths), batch_size, bucket_widths(lengths, 3), seed)

    uninterrupted = new()
    whole = [epoch_of(uninterrupted, epoch) for epoch in range(3)]
    questions = [(epoch, k) for epoch in range(3) for k in range(uninterrupted.batches)]
    random.shuffle(questions)
    resumed = new()
    for epoch, k in questions:
        rows, width = resumed.batch(epoch, k)
        assert rows.dtype == np.int64
        assert (rows.tolist(), width) == whole[epoch][k]
        rows[:] = -1  # a batch is the caller's own
    assert epoch_of(resumed, 2) == whole[2]


def test_epochs_and_seeds_differ() -> None:
    lengths = np.arange(1, 101)
    orders = [
        epoch_of(LengthBatches(lengths, 10, (50, 100), seed), epoch)
        for seed in range(2)
        for epoch in range(2)
    ]
    assert all(first != second for first, second in itertools.combinations(orders, 2))
    # Batches of both buckets are mixed, not one bucket after the other.
    assert all([width for _, width in order] != [50] * 5 + [100] * 5 for order in orders)


def test_in_order_is_sorted_by_length() -> None:
    lengths = np.array([3, 1, 2, 1, 3])
    batches = LengthBatches(lengths, 2, (2, 3), 0)
    found = [(rows.tolist(), width) for rows, width in batches.in_order()]
    assert found == [([1, 3], 2), ([2, 0], 3), ([4], 3)]


def test_frozen() -> None:
    batches = LengthBatches(np.arange(1, 6), 2, (5,), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batches.seed = 1  # type: ignore[misc]


# Splits


@given(st.integers(2, 50), st.floats(0, 0.9), st.none() | st.integers(0, 3))
def test_a_split_parts_all_rows(count: int, share: float, seed: int | None) -> None:
    heldout_count = round(share * count)
    if share > 0 and not 0 < heldout_count < count:
        assert str(count) in error_line(lambda: split_rows(count, share, seed))
        return
    train, heldout = split_rows(count, share, seed)
    assert train.dtype == heldout.dtype == np.int64
    assert len(heldout) == heldout_count
    assert sorted([*train, *heldout]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(heldout) > 0).all()
    again = split_rows(count, share, seed)
    assert all(map(np.array_equal, again, (train, heldout)))
    if seed is None:
        np.testing.assert_array_equal(heldout, np.arange(count - heldout_count, count))


def test_random_splits_differ_by_seed() -> None:
    splits = [tuple(split_rows(100, 0.2, seed)[1].tolist()) for seed in (None, 0, 1)]
    assert len(set(splits)) == 3


@pytest.mark.parametrize(
    ("count", "share", "seed"),
    [
        (-1, 0.1, 0),
        (9, 1, 0),
        (9, 0.01, 0),
        (1, 0.5, None),
    ],
)
def test_impossible_splits(count: Any, share: Any, seed: Any) -> None:
    error_line(lambda: split_rows(count, share, seed))


# Columns


@given(some_rows, st.integers(0, 2), st.integers(0, 2), st.sampled_from(["front", "end"]))
def test_columns_hold_the_rows_and_padding(
    lists: list[list[int]], wider: int, more: int, side: Any
) -> None:
    width = max(map(len, lists), default=0) + wider or 1
    batch_size = len(lists) + more or 1
    tokens, mask = pad_rows(as_rows(lists), width=width, batch_size=batch_size, side=side)
    assert tokens.shape == mask.shape == (width, batch_size)
    assert tokens.dtype == np.int32 and mask.dtype == np.bool_
    for column, row in enumerate(lists + [[]] * (batch_size - len(lists))):
        filling = [0] * (width - len(row))
        expected = filling + row if side == "front" else row + filling
        assert tokens[:, column].tolist() == expected
        # No token of the rows is 0, so the padding is known by its value.
        np.testing.assert_array_equal(mask[:, column], tokens[:, column] > 0)


@settings(max_examples=40)
@given(some_rows, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_prediction_is_that_of_rows_filled_up_to_the_longest(
    lists: list[list[int]], longer: int, wider: int, more: int
) -> None:
    longest = max(2, max(map(len, lists), default=0) + longer)
    batch_size = len(lists) + more or 1
    steps = prediction_steps([len(row) for row in lists], longest)
    width = int(steps.max(initial=1)) + wider
    inputs, targets, mask = prediction_rows(
        as_rows(lists), width=width, batch_size=batch_size, longest=longest
    )
    assert inputs.shape == targets.shape == mask.shape == (width, batch_size)
    assert inputs.dtype == targets.dtype == np.int32 and mask.dtype == np.bool_
    filled = np.zeros((longest + width, batch_size), np.int32)  # beyond `longest` too: any width
    for column, row in enumerate(lists):
        filled[: len(row), column] = row
    naive = filled[: longest - 1], filled[1:longest], filled[: longest - 1] > 0
    for laid, reference in zip((inputs, targets, mask), naive, strict=True):
        common = min(width, longest - 1)
        np.testing.assert_array_equal(laid[:common], reference[:common])
        assert not laid[common:].any() and not reference[common:].any()
    np.testing.assert_array_equal(mask.sum(0)[: len(lists)], steps)


def test_the_end_is_predicted_unless_the_row_is_full() -> None:
    laid = prediction_rows(as_rows([[5], [5, 6], [5, 6, 7]]), width=2, batch_size=3, longest=3)
    assert laid.inputs.T.tolist() == [[5, 0], [5, 6], [5, 6]]
    assert laid.targets.T.tolist() == [[0, 0], [6, 0], [6, 7]]
    assert laid.mask.T.tolist() == [[True, False], [True, True], [True, True]]


def test_steps_keep_the_shape() -> None:
    assert prediction_steps([[1, 2], [3, 4]], 4).tolist() == [[1, 2], [3, 3]]
    assert prediction_steps(7, 4) == 3

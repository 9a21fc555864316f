"""Laws of the batch layouts of one stream."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from lstm_jax.text import NOT_COUNTED, build_char_vocabulary, heldout_split, lanes, padded_lanes

sizes = st.integers(1, 7)
# Distinct ids, so that a position is recognised by its value.
streams = st.integers(0, 200).map(lambda n: np.arange(100, 100 + n, dtype=np.int32))


@given(streams, sizes, sizes)
def test_batches_continue_each_other(stream: Any, batch_size: int, length: int) -> None:
    # The stream as it is, and one that fits exactly.
    for ids in (stream, np.arange(100, 101 + batch_size * length * 2)):
        batches = (len(ids) - 1) // (batch_size * length)
        if batches < 1:
            message = refusal(lanes, ids, batch_size=batch_size, sequence_length=length)
            assert all(str(number) in message for number in (len(ids), batch_size, length))
            continue
        laid = lanes(ids, batch_size=batch_size, sequence_length=length)
        found = laid.batches, laid.batch_size, laid.sequence_length
        assert found == (batches, batch_size, length)
        assert laid.tokens.dtype == np.int32
        pairs = [laid.batch(k) for k in range(laid.batches)]
        for part in (part for pair in pairs for part in pair):
            assert part.shape == (length, batch_size)
            assert np.shares_memory(part, laid.tokens)
        inputs, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        steps = batches * length
        for lane in range(batch_size):
            np.testing.assert_array_equal(inputs[:, lane], ids[lane * steps : (lane + 1) * steps])
        # The stream counts up by one, so the token after x is x + 1.
        np.testing.assert_array_equal(targets, inputs + 1)
        assert len(ids) - 1 - inputs.size < batch_size * length


@pytest.mark.parametrize(
    "bad", [[-1], [2**31], [10**30], [0.5], [True], [[1, 2]], [[0], [0, 1]], "text", None, 3]
)
def test_ids_that_are_none(bad: Any) -> None:
    ids, lay = (bad * 20 if isinstance(bad, list) else bad), {"batch_size": 2, "sequence_length": 2}
    for call in (partial(lanes, **lay), partial(padded_lanes, **lay)):
        refusal(call, ids)
    refusal(heldout_split, ids, 0.1)
    refusal(build_char_vocabulary("ab").decode, ids)
    assert "context" in refusal(padded_lanes, range(9), context=ids, **lay)


@given(streams, st.floats(0, 1, exclude_max=True))
def test_split_keeps_every_token_in_order(stream: Any, share: float) -> None:
    heldout = round(share * len(stream))
    if share > 0 and heldout in (0, len(stream)):
        refusal(heldout_split, stream, share)
        return
    train_ids, heldout_ids = heldout_split(stream, share)
    np.testing.assert_array_equal(np.concatenate([train_ids, heldout_ids]), stream)
    assert len(heldout_ids) == heldout
    assert train_ids.dtype == heldout_ids.dtype == np.int32
    assert len(heldout_split(range(100), 0.29)[1]) == 29


@given(streams, st.integers(0, 9), sizes, sizes)
def test_every_token_is_a_target_once(
    stream: Any, context_size: int, batch_size: int, length: int
) -> None:
    context = np.arange(100 - context_size, 100)  # the streams of these tests begin with 100
    whole = np.concatenate([context, stream])
    expected = stream if context_size else stream[1:]
    lay = partial(padded_lanes, context=context, batch_size=batch_size, sequence_length=length)
    if not len(expected):
        refusal(lay, stream)
        return
    laid = lay(stream)
    rows, lane_count = laid.mask.shape
    assert laid.inputs.shape == laid.targets.shape == laid.mask.shape
    assert laid.inputs.dtype == laid.targets.dtype == np.int32 and laid.mask.dtype == np.bool_
    assert rows % length == 0 and lane_count == min(batch_size, len(expected))
    # Each lane begins with the text before it, as far as there is any, which is not counted.
    before = max(0, context_size - 1)
    counted = laid.mask & (laid.targets != NOT_COUNTED)
    assert laid.mask[:before].all() and (laid.targets[:before] == NOT_COUNTED).all()
    assert counted[before].all() and not (counted[:before]).any()
    for inputs, real in zip(laid.inputs.T, laid.mask.T, strict=True):
        np.testing.assert_array_equal(np.diff(inputs[real]), 1)
    assert laid.inputs[0, 0] == whole[0]
    # Lane after lane, the counted targets are the stream itself.
    np.testing.assert_array_equal(laid.targets.T[counted.T], expected)
    np.testing.assert_array_equal(laid.inputs[counted] + 1, laid.targets[counted])
    assert not laid.inputs[~laid.mask].any() and not laid.targets[~laid.mask].any()
    # Padding stands at the end of lanes, no lane is empty, and no batch is padding only.
    assert laid.mask[0].all() and not (laid.mask[1:] & ~laid.mask[:-1]).any()
    assert laid.mask[-length:].any()
    assert np.ptp(laid.mask.sum(0)) <= 1

"""Laws of the batch layouts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.text import NOT_COUNTED, heldout_split, lanes, padded_lanes

sizes = st.integers(1, 7)
# Distinct ids, so that a position is recognised by its value.
streams = st.integers(0, 200).map(lambda n: np.arange(100, 100 + n, dtype=np.int32))


def error_line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


# Training


@given(streams, sizes, sizes)
def test_batches_continue_each_other(stream: Any, batch_size: int, length: int) -> None:
    batches = (len(stream) - 1) // (batch_size * length)
    if batches < 1:
        message = error_line(lambda: lanes(stream, batch_size=batch_size, sequence_length=length))
        assert all(str(number) in message for number in (len(stream), batch_size, length))
        return
    laid = lanes(stream, batch_size=batch_size, sequence_length=length)
    assert (laid.batches, laid.batch_size, laid.sequence_length) == (batches, batch_size, length)
    assert laid.tokens.dtype == np.int32
    pairs = [laid.batch(k) for k in range(laid.batches)]
    assert all(part.shape == (length, batch_size) for pair in pairs for part in pair)
    inputs, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    steps = batches * length
    for lane in range(batch_size):
        np.testing.assert_array_equal(inputs[:, lane], stream[lane * steps : (lane + 1) * steps])
    # The stream counts up by one, so the token after x is x + 1.
    np.testing.assert_array_equal(targets, inputs + 1)
    assert len(stream) - 1 - inputs.size < batch_size * length


@given(sizes, sizes, st.integers(1, 3))
def test_the_stream_may_fit_exactly(batch_size: int, length: int, batches: int) -> None:
    stream = np.arange(batch_size * length * batches + 1)
    laid = lanes(stream, batch_size=batch_size, sequence_length=length)
    assert laid.batches == batches
    assert laid.tokens[-1, -1] == stream[-1]


def test_batches_are_views() -> None:
    laid = lanes(range(11), batch_size=2, sequence_length=5)
    assert all(np.shares_memory(part, laid.tokens) for part in laid.batch(0))


def test_frozen() -> None:
    laid = lanes(range(11), batch_size=2, sequence_length=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        laid.sequence_length = 1  # type: ignore[misc]


# Hostile arguments of every layout

BAD_SIZES = [0, -1, True, 2.0, "2", None, float("nan"), np.zeros((3, 3))]
BAD_IDS = [
    [-1] * 20,
    [2**31] * 20,
    [10**30] * 20,
    [0.5] * 20,
    [True] * 20,
    [[1, 2]] * 20,
    "text",
    None,
    3,
]


def lay_padded(ids: Any, **sizes: Any) -> object:
    return padded_lanes(ids, **sizes)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_ids(bad: Any) -> None:
    error_line(lambda: lanes(bad, batch_size=2, sequence_length=2))
    error_line(lambda: lay_padded(bad, batch_size=2, sequence_length=2))
    error_line(lambda: heldout_split(bad, 0.1))


# Splitting


@given(streams, st.floats(0, 1, exclude_max=True))
def test_split_keeps_every_token_in_order(stream: Any, share: float) -> None:
    heldout = round(share * len(stream))
    if share > 0 and heldout in (0, len(stream)):
        error_line(lambda: heldout_split(stream, share))
        return
    train_ids, heldout_ids = heldout_split(stream, share)
    np.testing.assert_array_equal(np.concatenate([train_ids, heldout_ids]), stream)
    assert len(heldout_ids) == heldout
    assert train_ids.dtype == heldout_ids.dtype == np.int32


def test_split_is_exact() -> None:
    assert len(heldout_split(range(100), 0.29)[1]) == 29
    assert len(heldout_split(range(100), np.float32(0.1))[1]) == 10  # type: ignore[arg-type]


# Evaluation


@given(streams, st.integers(0, 9), sizes, sizes)
def test_every_token_is_a_target_once(
    stream: Any, context_size: int, batch_size: int, length: int
) -> None:
    context = np.arange(100 - context_size, 100)  # the streams of these tests begin with 100
    whole = np.concatenate([context, stream])
    expected = stream if context_size else stream[1:]
    arguments = {"context": context, "batch_size": batch_size, "sequence_length": length}
    if not len(expected):
        error_line(lambda: padded_lanes(stream, **arguments))
        return
    laid = padded_lanes(stream, **arguments)
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


@pytest.mark.parametrize("context", [[-1], [2**31], [0.5], [True], "a", [[1]], 5])
def test_bad_context(context: Any) -> None:
    assert "context" in error_line(
        lambda: padded_lanes(range(9), context=context, batch_size=2, sequence_length=2)
    )

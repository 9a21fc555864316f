"""Batches of one stream of ids, in lanes for truncated backpropagation through time.

A lane is a consecutive part of the stream, which one column holds from top to bottom. Arrays are
time first, `[T, B]`; a recurrent network's carry passes from one batch to the next.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.sequences import heldout_count


@dataclass(frozen=True, eq=False)
class Lanes:
    """S batches of T steps in B lanes.

    Attributes:
        tokens: int32 [S * T + 1, B]; row t + 1 holds the targets of row t.
        sequence_length: T, the time steps of one batch.
    """

    tokens: Ids
    sequence_length: int

    @property
    def batch_size(self) -> int:
        """B, the number of lanes."""
        return int(self.tokens.shape[1])

    @property
    def batches(self) -> int:
        """S, the number of batches per epoch."""
        return (len(self.tokens) - 1) // self.sequence_length

    @property
    def targets(self) -> Ids:
        """Targets of all batches, int32 [S * T, B]."""
        return self.tokens[1:]

    def batch(self, k: int) -> tuple[Ids, Ids]:
        """Return inputs and targets of batch `k` of S, each [T, B], as views of `tokens`."""
        first = k * self.sequence_length
        last = first + self.sequence_length
        return self.tokens[first:last], self.tokens[first + 1 : last + 1]


NOT_COUNTED = -1
"""Target of a context token: it is outside any vocabulary, so losses ignore it."""


class PaddedLanes(NamedTuple):
    """Lanes of a whole stream, for evaluation; tokens are only where `mask` is True.

    Attributes:
        inputs: int32 [S * T, B], 0 where padded.
        targets: int32 [S * T, B], `NOT_COUNTED` for a lane's context, 0 where padded.
        mask: bool [S * T, B], False at the end of lanes only; row 0 is all True.
    """

    inputs: Ids
    targets: Ids
    mask: npt.NDArray[np.bool_]


def lanes(ids: npt.ArrayLike, *, batch_size: int, sequence_length: int) -> Lanes:
    """Lay the stream `ids` [N] out in B lanes of S * T steps, S = floor((N - 1) / (B * T)).

    Lane b holds `ids[b * S * T : (b + 1) * S * T + 1]`: lanes are consecutive in the stream, and
    the last target of one is the first input of the next. Fewer than B * T ids are left over.
    Raises ValueError if S would be 0, or `ids` are not ids.
    """
    stream = as_ids(ids)
    steps = (len(stream) - 1) // (batch_size * sequence_length) * sequence_length
    if steps <= 0:
        raise ValueError(
            f"{len(stream)} tokens do not fill one batch of {batch_size} x {sequence_length} (it "
            f"takes {batch_size * sequence_length + 1}); use a smaller batch size or sequence "
            "length, or more text"
        )
    tokens = np.empty((steps + 1, batch_size), np.int32)
    tokens[:-1] = stream[: batch_size * steps].reshape(batch_size, steps).T
    tokens[-1] = stream[steps : batch_size * steps + 1 : steps]
    return Lanes(tokens, sequence_length)


def heldout_split(ids: npt.ArrayLike, share: float) -> tuple[Ids, Ids]:
    """Split the stream `ids` [N] into (train, held out); the last `round(share * N)` are held out.

    Raises ValueError if `share` is above 0 and leaves a part empty, or `ids` are not ids.
    """
    stream = as_ids(ids)
    cut = len(stream) - heldout_count(len(stream), share, "tokens")
    return stream[:cut], stream[cut:]


def padded_lanes(
    ids: npt.ArrayLike, *, context: npt.ArrayLike = (), batch_size: int, sequence_length: int
) -> PaddedLanes:
    """Lay `ids` [N] out so that each is a target exactly once, with padding at the ends of lanes.

    The M targets (N, or N - 1 without a context) are distributed in order over B = min(batch_size,
    M) lanes whose lengths differ by at most one. Before its targets a lane has the C - 1 tokens
    that precede them, as inputs without targets; rows are padded to a multiple of T.

    Raises ValueError if there are no targets, or `ids` or `context` are not ids.

    Args:
        ids: the stream to predict.
        context: the C ids just before `ids[0]`; without any, `ids[0]` is an input only.
        batch_size: maximum number of lanes.
        sequence_length: T, the time steps of one batch.
    """
    before = as_ids(context, name="context")
    stream = np.concatenate([before, as_ids(ids)])
    unpredicted = max(1, len(before))
    total = len(stream) - unpredicted
    if total < 1:
        raise ValueError("there is no token to predict; give more text, or hold out a larger share")
    lane_count = min(batch_size, total)
    bounds = np.arange(lane_count + 1, dtype=np.int64) * total // lane_count
    steps = unpredicted - 1 + np.diff(bounds).max()
    rows = np.arange(math.ceil(steps / sequence_length) * sequence_length)[:, None]
    positions = bounds[:-1] + rows
    mask = positions < bounds[1:] + unpredicted - 1
    positions[~mask] = 0  # any valid position will do: the padding is overwritten below
    targets = np.where(rows < unpredicted - 1, NOT_COUNTED, stream[positions + 1])
    return PaddedLanes(stream[positions] * mask, (targets * mask).astype(np.int32), mask)

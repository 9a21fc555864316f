"""Batches of many short sequences of similar length: buckets, epochs, padding.

A batch is a set of rows and a width T; `pad_rows` makes the rows columns of time-first arrays
`[T, B]`. Tokens are only where the mask is True.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from lstm_jax.text.ids import Ids

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LengthBatches:
    """Batches of rows of similar length, in a different order each epoch.

    The rows of an epoch are shuffled, stably sorted by bucket, and cut into batches, which are
    shuffled in turn. So every epoch contains every row once with the same batch shapes, and a batch
    depends only on (seed, epoch, index).

    Attributes:
        lengths: integers [N], the length of every row, at least 1.
        batch_size: B, rows per batch; one batch of an epoch may have fewer.
        most_widths: maximum number of widths to which batches are padded.
        seed: seed of the order of rows and batches, at least 0.
    """

    lengths: npt.NDArray[np.integer]
    batch_size: int
    most_widths: int
    seed: int
    # Order of the latest epoch, by its number: at most one entry.
    _latest: dict[int, tuple[Rows, Rows]] = field(init=False, repr=False, default_factory=dict)

    @property
    def batches(self) -> int:
        """S, the number of batches per epoch, ceil(N / B)."""
        return -(-len(self.lengths) // self.batch_size)

    def batch(self, step: int) -> tuple[Rows, int]:
        """Return the rows of a batch, int64 [B] or fewer, and its width; an epoch has S steps."""
        epoch, index = divmod(step, self.batches)
        if epoch not in self._latest:
            generator = np.random.default_rng([self.seed, epoch])
            rows = generator.permutation(len(self.lengths))
            rows = rows[np.argsort(self._buckets[rows], kind="stable")]
            self._latest.clear()
            self._latest[epoch] = rows, generator.permutation(self.batches)
        rows, batch_order = self._latest[epoch]
        return self._cut(rows, int(batch_order[index]))

    def in_order(self) -> Iterator[tuple[Rows, int]]:
        """Yield all S batches for evaluation, unshuffled: sorted by length, ties by row."""
        rows = np.argsort(self.lengths, kind="stable").astype(np.int64, copy=False)
        return (self._cut(rows, k) for k in range(self.batches))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Widths of the buckets, ascending; a row belongs to the first that holds it."""
        return bucket_widths(self.lengths, self.most_widths)

    @cached_property
    def _buckets(self) -> Rows:
        return np.searchsorted(self.widths, self.lengths).astype(np.int64, copy=False)

    def _cut(self, rows: Rows, k: int) -> tuple[Rows, int]:
        """Return batch `k` of `rows`, which are sorted at least by bucket, and its width."""
        chosen = rows[k * self.batch_size : (k + 1) * self.batch_size].copy()
        return chosen, int(self.widths[self._buckets[chosen[-1]]])


def bucket_widths(lengths: npt.ArrayLike, most: int) -> tuple[int, ...]:
    """Return the widths of at most `most` buckets that minimise the padding.

    Each is one of `lengths` [N]; they ascend, and the last is the longest. Dynamic programming over
    the D distinct lengths, in O(most * D^2), minimises the sum of w(l) - l over all lengths, where
    w(l) is the first width that holds l.
    """
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    # Entry j covers the j shortest distinct lengths: the number of their rows, and the least sum of
    # their widths. As the tokens do not depend on the widths, the least sum has the least padding.
    rows = np.concatenate([[0], np.cumsum(counts)])
    least = rows * np.concatenate([[0], distinct])
    cuts = [np.zeros(len(rows), np.int64)]
    for _ in range(1, min(most, len(distinct))):
        cut, better = np.zeros_like(rows), np.zeros_like(rows)
        for j in range(1, len(rows)):
            # The last bucket holds the distinct lengths at positions i to j - 1.
            sums = least[:j] + distinct[j - 1] * (rows[j] - rows[:j])
            cut[j] = sums.argmin()
            better[j] = sums[cut[j]]
        least = better
        cuts.append(cut)
    widths, j = [], len(distinct)
    while j > 0:
        widths.append(int(distinct[j - 1]))
        j = int(cuts.pop()[j])
    return tuple(reversed(widths))


def heldout_count(count: int, share: float, what: str) -> int:
    """Return round(share * count), the number of tokens or rows to hold out.

    Raises ValueError if `share` is above 0 and leaves a part empty.
    """
    heldout = round(share * count)
    if share > 0 and not 0 < heldout < count:
        raise ValueError(
            f"holding out {share} of {count} {what} leaves one part empty; "
            f"use another share (0 holds out nothing) or more {what}"
        )
    return heldout


def split_rows(count: int, share: float, seed: int | None) -> tuple[Rows, Rows]:
    """Split the rows 0 to `count` - 1 into (train, held out), int64 [N] each, ascending.

    The held-out share is drawn at random by the seed, or without one is the last rows. Raises
    ValueError as `heldout_count` does.
    """
    cut = count - heldout_count(count, share, "rows")
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
    return np.sort(order[:cut]), np.sort(order[cut:])


def pad_rows(
    rows: Sequence[Ids], *, width: int, batch_size: int, side: Literal["front", "end"]
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Make `rows` the columns of an array, padded with id 0 before or after the tokens.

    Returns tokens, int32 [T, B] with T = `width` and B = `batch_size`, and the mask, bool [T, B];
    missing rows are padding only.
    """
    lengths_B = np.zeros(batch_size, np.int64)
    lengths_B[: len(rows)] = [len(row) for row in rows]
    places = np.arange(width) if side == "end" else np.arange(width)[::-1]
    mask_BT = places < lengths_B[:, None]
    tokens_BT = np.zeros((batch_size, width), np.int32)
    if rows:
        tokens_BT[mask_BT] = np.concatenate(rows)
    return np.ascontiguousarray(tokens_BT.T), np.ascontiguousarray(mask_BT.T)

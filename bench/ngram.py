"""An interpolated n-gram with absolute discounting, as a baseline for the models' losses.

Let c(h w) be how often token w follows history h in training, c(h) its sum over w, N(h) the number
of distinct w that follow h, h' the history without its first token, and d the discount:

    p_n(w | h) = max(c(h w) - d, 0) / c(h) + d N(h) / c(h) * p_{n-1}(w | h'),    p_0(w) = 1 / V,

and p_n(w | h) = p_{n-1}(w | h') if nothing follows h in training.

References:
    Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language
    modelling", Computer Speech and Language 8 (1994); Chen and Goodman, "An empirical study of
    smoothing techniques for language modeling" (1996), cmp-lg/9606011.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Sequences = Sequence[npt.ArrayLike]
"""Sequences of ids; no history extends beyond a sequence's start. A text is one sequence."""

DISCOUNTS = tuple(step / 20 for step in range(2, 20))  # Candidate discounts: 0.1, 0.15, ..., 0.95.
_DEVELOPMENT_SHARE = 0.1


class NGramResult(NamedTuple):
    """Mean nats per held-out token; the discount, chosen on training data only; n."""

    loss: float
    discount: float
    order: int


class _Evidence(NamedTuple):
    """Counts for each predicted token, `[order, N]`: c(h w), c(h) and N(h)."""

    counts: Floats
    totals: Floats
    distinct: Floats
    vocabulary_size: int

    def losses(self, discount: float) -> Floats:
        """-log p in nats `[N]`, with a discount between 0 and 1."""
        p = np.full(self.counts.shape[1], 1 / self.vocabulary_size)
        for count, total, distinct in zip(*self[:3], strict=True):
            taken = np.maximum(count - discount, 0) + discount * distinct * p
            p = np.where(total > 0, taken / np.maximum(total, 1), p)
        losses: Floats = -np.log(p)
        return losses

    def mean_loss(self, discount: float) -> float:
        """Raises ValueError if nothing is predicted."""
        losses = self.losses(discount)
        if not losses.size:
            raise ValueError("there is no token to predict; hold out more text or longer sequences")
        return float(losses.mean())


class NGram:
    """Counts of an n-gram, of orders 1, ..., n.

    The first `given` tokens of each sequence are not counted as followers of a history.
    """

    def __init__(
        self, training: Sequences, *, order: int, vocabulary_size: int, given: int = 0
    ) -> None:
        self._size = vocabulary_size
        self._levels: list[_Level] = []
        tokens = _join(training, given)
        histories = np.zeros_like(tokens.ids)  # the empty history
        for _ in range(order):
            self._levels.append(_Level(histories, tokens, vocabulary_size))
            histories = self._levels[-1].lengthened(histories, tokens)

    def evidence(self, sequences: Sequences, given: int = 0) -> _Evidence:
        """Counts for each token except the first `given` of each sequence."""
        tokens, rows = _join(sequences, given), []
        histories, wanted = np.zeros_like(tokens.ids), tokens.predicted
        for level in self._levels:
            followed, grams = histories[wanted], level.ranks(histories, tokens.ids)[wanted]
            rows.append((level.counts[grams], level.totals[followed], level.distinct[followed]))
            histories = level.lengthened(histories, tokens)
        counts, totals, distinct = (np.stack(kind) for kind in zip(*rows, strict=True))
        return _Evidence(counts, totals, distinct, self._size)


def choose_discount(
    sequences: Sequences, order: int, vocabulary_size: int, given: int = 0
) -> float:
    """Choose the discount that best predicts the last tenth from the rest.

    For a single sequence, a text, that is the last tenth of its tokens; for several, the last tenth
    of the sequences, each predicted except for the given tokens at its start. Raises ValueError if
    there is too little data.
    """
    arrays = list(map(np.asarray, sequences))
    noun, parts = ("ids", arrays[0]) if len(arrays) == 1 else ("sequences", arrays)
    if len(parts) < 2:
        raise ValueError(f"a discount cannot be chosen on {len(parts)} {noun}; give at least 2")
    cut = len(parts) - max(1, int(len(parts) * _DEVELOPMENT_SHARE))
    counted, development, known = arrays[:cut], arrays[cut:], given
    if len(arrays) == 1:
        counted, context = [arrays[0][:cut]], _end_of(arrays[0][:cut], order)
        development, known = [np.concatenate((context, arrays[0][cut:]))], len(context)
    model = NGram(counted, order=order, vocabulary_size=vocabulary_size, given=given)
    return min(DISCOUNTS, key=model.evidence(development, known).mean_loss)


def heldout_loss(
    training: Sequences,
    heldout: Sequences,
    *,
    order: int,
    vocabulary_size: int,
    goes_on: bool = True,
) -> NGramResult:
    """Fit an n-gram, and predict each held-out token once.

    With `goes_on`, each held-out sequence continues the training sequence in its place, as in a
    text or its lanes, whose discount is chosen on their concatenation. Otherwise the first token of
    every sequence is given. Raises ValueError if there is too little to train on, or nothing to
    predict.
    """
    counted, predicted = list(map(np.asarray, training)), list(map(np.asarray, heldout))
    given = known = 0 if goes_on else 1
    text = [np.concatenate(counted)] if goes_on else counted
    discount = choose_discount(text, order, vocabulary_size, given)
    model = NGram(counted, order=order, vocabulary_size=vocabulary_size, given=given)
    if goes_on:
        ends = [_end_of(each, order) for each in counted]
        predicted = [*map(np.concatenate, zip(ends, predicted, strict=True))]
        known = len(ends[0])
    return NGramResult(model.evidence(predicted, known).mean_loss(discount), discount, order)


def _end_of(ids: npt.NDArray[np.int32], order: int) -> npt.NDArray[np.int32]:
    """The history of an n-gram of this order after these ids."""
    return ids[max(0, len(ids) - order + 1) :]


class _Tokens(NamedTuple):
    """Concatenated sequences: ids, which begin a sequence, which are predicted; all `[N]`."""

    ids: Integers
    starts: Flags
    predicted: Flags


def _join(sequences: Sequences, given: int) -> _Tokens:
    arrays = [np.asarray(sequence, np.int64) for sequence in sequences]
    lengths = np.array(list(map(len, arrays)), np.int64)
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = np.concatenate([*arrays, np.zeros(0, np.int64)])
    position = np.arange(len(ids)) - begins
    return _Tokens(ids, position == 0, position >= given)


class _Level:
    """Counts of each token after each history of one length.

    A history is represented by its rank among the sorted grams of the next shorter level, so a
    gram's key, `rank V + token`, stays small for any length. Rank -1 means an unseen history, for
    which the last entry of all counts is 0.
    """

    def __init__(self, histories: Integers, tokens: _Tokens, size: int) -> None:
        seen = histories >= 0
        grams, places = np.unique(histories[seen] * size + tokens.ids[seen], return_inverse=True)
        ranks = int(histories.max(initial=-1)) + 1
        counts = _tally(places, tokens.predicted[seen], len(grams))
        self._size = size
        self._grams = np.append(grams, np.iinfo(np.int64).max)  # a sentinel that ends any search
        self.counts = np.append(counts, 0.0)  # c(h w) by the gram's rank
        self.totals = _tally(grams // size, counts, ranks + 1)  # c(h) by the history's
        self.distinct = _tally(grams // size, counts > 0, ranks + 1)  # N(h) by the history's

    def ranks(self, histories: Integers, ids: Integers) -> Integers:
        """Rank of each gram, history and token; -1 if unseen."""
        keys = histories * self._size + ids
        places = np.searchsorted(self._grams, keys)
        return np.where((histories >= 0) & (self._grams[places] == keys), places, -1)

    def lengthened(self, histories: Integers, tokens: _Tokens) -> Integers:
        """Ranks of the histories one token longer, the grams that end one position earlier."""
        longer = np.roll(self.ranks(histories, tokens.ids), 1)
        longer[tokens.starts] = -1
        return longer


def _tally(places: Integers, weights: Floats | Flags, length: int) -> Floats:
    return np.bincount(places, weights, length).astype(np.float64)

"""An interpolated n-gram with absolute discounting: the baseline beside the models' losses.

With c(h w) how often token w follows history h in training, c(h) its sum over w, N(h) the number of
distinct w that follow h, h' the history without its first token, and a discount d for each order,

    p_n(w | h) = max(c(h w) - d, 0) / c(h) + d N(h) / c(h) * p_{n-1}(w | h'),    p_0(w) = 1 / V;

where nothing follows h in training, p_n(w | h) = p_{n-1}(w | h').

References:
    Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language
    modelling", Computer Speech and Language 8 (1994); Chen and Goodman, "An empirical study of
    smoothing techniques for language modeling" (1996), cmp-lg/9606011.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_jax.text.ids import as_ids

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Sequences = Sequence[npt.ArrayLike]
"""Of ids; no history reaches back over a sequence's start. A text is one sequence."""

DISCOUNTS = tuple(step / 20 for step in range(2, 20))
"""Those that are tried: 0.1, 0.15, ..., 0.95."""

_DEVELOPMENT_SHARE = 0.1


class NGramResult(NamedTuple):
    """Mean nats a held-out token; the discount, chosen on what was trained on alone; n."""

    loss: float
    discount: float
    order: int


class NGram:
    """An n-gram's counts and discounts, each between 0 and 1, of the orders 1, ..., n.

    The first `given` tokens of each sequence are not counted as what follows a history.

    Raises:
        ValueError: no discounts or impossible ones, or an id outside the vocabulary.
    """

    def __init__(
        self,
        training: Sequences,
        *,
        vocabulary_size: int,
        discounts: Sequence[float],
        given: int = 0,
    ) -> None:
        if not discounts or not all(0 < discount < 1 for discount in discounts):
            raise ValueError(
                f"discounts are {tuple(discounts)}; give one between 0 and 1 for each order"
            )
        self._discounts, self._size = tuple(discounts), vocabulary_size
        self._levels = _count(_join(training, given, vocabulary_size), len(discounts))

    def losses(self, sequences: Sequences, given: int = 0) -> Floats:
        """-log p in nats of each token in turn but the first `given` of each sequence."""
        evidence = _gather(self._levels, _join(sequences, given, self._size))
        return evidence.losses(self._discounts, self._size)


def choose_discount(
    sequences: Sequences, order: int, vocabulary_size: int, given: int = 0
) -> float:
    """The discount, one for every order, that predicts the last tenth best from the rest.

    Of a single sequence, a text, that is the last tenth of its tokens; of several the last tenth of
    them, each predicted but for the given tokens at its start.

    Raises:
        ValueError: too little to choose by, an id outside the vocabulary, or an order below 1.
    """
    arrays = [as_ids(sequence) for sequence in sequences]
    noun, parts = ("ids", arrays[0]) if len(arrays) == 1 else ("sequences", arrays)
    if len(parts) < 2:
        raise ValueError(f"a discount cannot be chosen on {len(parts)} {noun}; give at least 2")
    cut = len(parts) - max(1, int(len(parts) * _DEVELOPMENT_SHARE))
    counted, development, known = arrays[:cut], arrays[cut:], given
    if len(arrays) == 1:
        counted, context = [arrays[0][:cut]], _end_of(arrays[0][:cut], order)
        development, known = [np.concatenate((context, arrays[0][cut:]))], len(context)
    levels = _count(_join(counted, given, vocabulary_size), order)
    evidence = _gather(levels, _join(development, known, vocabulary_size))

    def loss(discount: float) -> float:
        return _mean(evidence.losses((discount,) * order, vocabulary_size))

    return min(DISCOUNTS, key=loss)


def heldout_loss(
    training: Sequences,
    heldout: Sequences,
    *,
    order: int,
    vocabulary_size: int,
    goes_on: bool = True,
) -> NGramResult:
    """Fits an n-gram, and predicts held-out tokens, each once.

    Where `goes_on`, each held-out sequence goes on where the training one in its place ends, as in
    a text or in lanes of one, whose discount is chosen on them one after the other. If not, the
    first token of every sequence is given.

    Raises:
        ValueError: too little to train on, nothing to predict, an id outside the vocabulary, or an
            order below 1.
    """
    counted, predicted = list(map(as_ids, training)), list(map(as_ids, heldout))
    given = known = 0 if goes_on else 1
    text = [np.concatenate(counted)] if goes_on else counted
    discount = choose_discount(text, order, vocabulary_size, given)
    discounts = (discount,) * order
    model = NGram(counted, vocabulary_size=vocabulary_size, discounts=discounts, given=given)
    if goes_on:
        ends = [_end_of(each, order) for each in counted]
        predicted, known = (
            list(map(np.concatenate, zip(ends, predicted, strict=True))),
            len(ends[0]),
        )
    return NGramResult(_mean(model.losses(predicted, known)), discount, order)


def _end_of(ids: npt.NDArray[np.int32], order: int) -> npt.NDArray[np.int32]:
    """What an n-gram of this order looks back on after these ids."""
    return ids[max(0, len(ids) - order + 1) :]


def _mean(losses: Floats) -> float:
    if not losses.size:
        raise ValueError("there is no token to predict; hold out more text, or longer sequences")
    return float(losses.mean())


class _Tokens(NamedTuple):
    """Sequences one after the other: ids, which begin a sequence, which are predicted; all [N]."""

    ids: Integers
    starts: Flags
    predicted: Flags
    size: int


class _Level:
    """How often each token follows each history of one length.

    A history is known by its rank, its place among the shorter level's sorted grams; so a gram's
    key, `rank V + token`, stays small however long the gram. Rank -1 is that of a history unseen.

    Attributes:
        counts: c(h w) by the gram's rank; the last, so that of rank -1, is 0.
        totals: c(h) by the history's rank; the last is 0.
        distinct: N(h) by the history's rank; the last is 0.
    """

    def __init__(self, histories: Integers, tokens: _Tokens) -> None:
        seen, size = histories >= 0, tokens.size
        keys = histories[seen] * size + tokens.ids[seen]
        grams, places = np.unique(keys, return_inverse=True)
        ranks = int(histories.max(initial=-1)) + 1
        counts = _tally(places, tokens.predicted[seen], len(grams))
        self._size = size
        self._grams = np.append(grams, np.iinfo(np.int64).max)  # no search ends beyond it
        self.counts = np.append(counts, 0.0)
        self.totals = _tally(grams // size, counts, ranks + 1)
        self.distinct = _tally(grams // size, counts > 0, ranks + 1)

    def ranks(self, histories: Integers, ids: Integers) -> Integers:
        """The rank of each gram, history and token; -1 for one unseen."""
        keys = histories * self._size + ids
        places = np.searchsorted(self._grams, keys)
        return np.where((histories >= 0) & (self._grams[places] == keys), places, -1)


class _Evidence(NamedTuple):
    """What was counted for each predicted token, `[order, N]`: c(h w), c(h) and N(h)."""

    counts: Floats
    totals: Floats
    distinct: Floats

    def losses(self, discounts: Sequence[float], size: int) -> Floats:
        """-log p in nats [N]."""
        p = np.full(self.counts.shape[1], 1 / size)
        for discount, *evidence in zip(discounts, *self, strict=True):
            count, total, distinct = evidence
            taken = np.maximum(count - discount, 0) + discount * distinct * p
            p = np.where(total > 0, taken / np.maximum(total, 1), p)
        losses: Floats = -np.log(p)
        return losses


def _join(sequences: Sequence[npt.ArrayLike], given: int, size: int) -> _Tokens:
    arrays = [as_ids(sequence) for sequence in sequences]
    ids = np.concatenate([*arrays, np.zeros(0, np.int32)]).astype(np.int64)
    if ids.max(initial=0) >= size:
        raise ValueError(
            f"id {ids.max()} is outside a vocabulary of {size}; give the size of the vocabulary "
            "that the ids were made with"
        )
    lengths = np.array([len(array) for array in arrays], np.int64)
    begins = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(begins, lengths)
    return _Tokens(ids, position == 0, position >= given, size)


def _tally(places: Integers, weights: Floats | Flags, length: int) -> Floats:
    return np.bincount(places, weights, length).astype(np.float64)


def _count(tokens: _Tokens, order: int) -> list[_Level]:
    if order < 1:
        raise ValueError(f"order is {order}; it must be at least 1")
    levels: list[_Level] = []
    histories = np.zeros_like(tokens.ids)  # the empty one
    for _ in range(order):
        levels.append(_Level(histories, tokens))
        histories = _lengthen(levels[-1], histories, tokens)
    return levels


def _lengthen(level: _Level, histories: Integers, tokens: _Tokens) -> Integers:
    """Ranks of the histories one token longer: the grams that end one position earlier."""
    longer = np.roll(level.ranks(histories, tokens.ids), 1)
    longer[tokens.starts] = -1
    return longer


def _gather(levels: Sequence[_Level], tokens: _Tokens) -> _Evidence:
    rows: list[tuple[Floats, Floats, Floats]] = []
    histories, wanted = np.zeros_like(tokens.ids), tokens.predicted
    for level in levels:
        followed, grams = histories[wanted], level.ranks(histories, tokens.ids)[wanted]
        rows.append((level.counts[grams], level.totals[followed], level.distinct[followed]))
        histories = _lengthen(level, histories, tokens)
    return _Evidence(*(np.stack(kind) for kind in zip(*rows, strict=True)))

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
    """How well an n-gram predicts a held-out text.

    Attributes:
        loss: mean nats a token.
        discount: of every order, chosen on the training text alone.
        order: n; a history is n - 1 tokens long.
    """

    loss: float
    discount: float
    order: int


class NGram:
    """An n-gram's counts and discounts."""

    def __init__(
        self,
        training: Sequences,
        *,
        vocabulary_size: int,
        discounts: Sequence[float],
        given: int = 0,
    ) -> None:
        """Counts.

        Args:
            training: what is counted.
            vocabulary_size: V; every id is below it.
            discounts: d of the orders 1, ..., n, each between 0 and 1.
            given: so many tokens at the start of each sequence are only ever part of a history:
                they are not counted as what follows one.

        Raises:
            ValueError: no discounts or impossible ones, or an id outside the vocabulary.
        """
        if not discounts or not all(0 < discount < 1 for discount in discounts):
            raise ValueError(
                f"discounts are {tuple(discounts)}; give one between 0 and 1 for each order"
            )
        self._discounts, self._size = tuple(discounts), vocabulary_size
        self._levels = _count(_join(training, given, vocabulary_size), len(discounts))

    def losses(self, sequences: Sequences, given: int = 0) -> Floats:
        """-log p in nats of every token, one sequence after the other, but for those given.

        Args:
            sequences: ids.
            given: so many tokens at the start of each sequence are not predicted.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        evidence = _gather(self._levels, _join(sequences, given, self._size))
        return evidence.losses(self._discounts, self._size)


def choose_discount(
    sequences: Sequences, order: int, vocabulary_size: int, given: int = 0
) -> float:
    """The discount, one for every order, that predicts the last tenth best from the rest.

    Of a single sequence, a text, that is the last tenth of its tokens; of several the last tenth of
    them, each predicted but for the given tokens at its start.

    Raises:
        ValueError: fewer than two tokens or sequences, nothing to predict in the last tenth, an id
            outside the vocabulary, or an order below 1.
    """
    if len(sequences) == 1:
        ids = as_ids(sequences[0])
        cut = _development_start(len(ids), "ids")
        context = end_of(ids[:cut], order)
        counted, development = [ids[:cut]], [np.concatenate((context, ids[cut:]))]
        predicted = _join(development, len(context), vocabulary_size)
    else:
        cut = _development_start(len(sequences), "sequences")
        counted = list(map(as_ids, sequences[:cut]))
        predicted = _join(sequences[cut:], given, vocabulary_size)
    evidence = _gather(_count(_join(counted, given, vocabulary_size), order), predicted)

    def loss(discount: float) -> float:
        return mean(evidence.losses((discount,) * order, vocabulary_size))

    return min(DISCOUNTS, key=loss)


def heldout_loss(
    training: npt.ArrayLike, heldout: npt.ArrayLike, *, order: int, vocabulary_size: int
) -> NGramResult:
    """Fits an n-gram to a text, and predicts every token of the text's held-out end once.

    Raises:
        ValueError: too few ids, one outside the vocabulary, or an order below 1.
    """
    ids = as_ids(training, name="training")
    discount = choose_discount([ids], order, vocabulary_size)
    model = NGram([ids], vocabulary_size=vocabulary_size, discounts=(discount,) * order)
    context = end_of(ids, order)
    losses = model.losses([np.concatenate((context, as_ids(heldout)))], len(context))
    return NGramResult(mean(losses), discount, order)


def heldout_loss_of_sequences(
    training: Sequences, heldout: Sequences, *, order: int, vocabulary_size: int
) -> NGramResult:
    """Fits an n-gram to sequences, and predicts held-out ones, each but for its first token.

    Raises:
        ValueError: too few sequences, nothing to predict in them, an id outside the vocabulary, or
            an order below 1.
    """
    discount = choose_discount(training, order, vocabulary_size, given=1)
    model = NGram(training, vocabulary_size=vocabulary_size, discounts=(discount,) * order, given=1)
    return NGramResult(mean(model.losses(heldout, given=1)), discount, order)


def end_of(ids: npt.NDArray[np.int32], order: int) -> npt.NDArray[np.int32]:
    """What an n-gram of this order looks back on after these ids."""
    return ids[max(0, len(ids) - order + 1) :]


def mean(losses: Floats) -> float:
    """The mean loss.

    Raises:
        ValueError: there is none.
    """
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


def _development_start(length: int, noun: str) -> int:
    if length < 2:
        raise ValueError(f"a discount cannot be chosen on {length} {noun}; give at least 2")
    return length - max(1, int(length * _DEVELOPMENT_SHARE))

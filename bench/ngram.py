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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Sequences = Sequence[npt.ArrayLike]
"""Sequences of ids; no history extends beyond a sequence's start. A text is one sequence."""

DISCOUNTS = tuple(step / 20 for step in range(2, 20))  # Candidate discounts: 0.1, 0.15, ..., 0.95.
_DEVELOPMENT_SHARE = 0.1


class NGramResult(NamedTuple):
    """Mean nats per held-out token; the discount, chosen on training data only; n."""

    loss: float
    discount: float
    order: int


class Evidence(NamedTuple):
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
        return -np.log(p)

    def mean_loss(self, discount: float) -> float:
        """Raises ValueError if nothing is predicted."""
        losses = self.losses(discount)
        if not losses.size:
            raise ValueError("there is no token to predict; hold out more text or longer sequences")
        return float(losses.mean())


def evidence(
    sequences: Sequences, cuts: Sequence[int], *, order: int, vocabulary_size: int, given: int = 0
) -> Evidence:
    """Count with n-grams of orders 1, ..., n.

    The first tokens of each sequence, as many as its cut says, are for training, and the others are
    predicted. The first `given` of each are neither predicted nor followers of a history.
    """
    arrays = [np.asarray(sequence, np.int64) for sequence in sequences]
    ids = np.concatenate(arrays)
    place = np.concatenate([np.arange(len(array)) for array in arrays])
    is_trained = place < np.repeat(cuts, list(map(len, arrays)))
    wanted = ~is_trained & (place >= given)
    # A history is the number of its gram among those of the order below, so that keys stay small
    # for any order. 1 is the empty history, and 0 one that begins before its sequence.
    histories, found = np.ones_like(ids), []
    for _ in range(order):
        is_known = histories > 0
        grams, gram = np.unique(histories * vocabulary_size + ids, return_inverse=True)
        counts = np.bincount(gram, is_trained & is_known & (place >= given))
        followed = grams // vocabulary_size
        totals, distinct = np.bincount(followed, counts), np.bincount(followed, counts > 0)
        found.append((counts[gram[wanted]], totals[histories[wanted]], distinct[histories[wanted]]))
        histories = np.roll(np.where(is_known, gram + 1, 0), 1)
        histories[place == 0] = 0
    counts, totals, distinct = np.array(list(zip(*found, strict=True)), np.float64)
    return Evidence(counts, totals, distinct, vocabulary_size)


def choose_discount(
    sequences: Sequences, *, order: int, vocabulary_size: int, given: int = 0
) -> float:
    """Choose the discount that best predicts the last tenth from the rest.

    For a single sequence, a text, that is the last tenth of its tokens; for several, the last tenth
    of the sequences, each predicted except for the given tokens at its start. Raises ValueError if
    there is too little data.
    """
    lengths = [np.size(sequence) for sequence in sequences]
    noun, number = ("ids", lengths[0]) if len(lengths) == 1 else ("sequences", len(lengths))
    if number < 2:
        raise ValueError(f"a discount cannot be chosen on {number} {noun}; give at least 2")
    cut = number - max(1, int(number * _DEVELOPMENT_SHARE))
    cuts = [cut] if len(lengths) == 1 else lengths[:cut] + [0] * (number - cut)
    sizes = {"order": order, "vocabulary_size": vocabulary_size}
    return min(DISCOUNTS, key=evidence(sequences, cuts, given=given, **sizes).mean_loss)


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
    how: Any = {"order": order, "vocabulary_size": vocabulary_size, "given": 0 if goes_on else 1}
    cuts = [np.size(sequence) for sequence in training]
    fitted, sequences = training, [*training, *heldout]
    if goes_on:
        fitted = [np.concatenate(training)]
        sequences = [np.concatenate(parts) for parts in zip(training, heldout, strict=True)]
    else:
        cuts += [0] * len(heldout)
    discount = choose_discount(fitted, **how)
    return NGramResult(evidence(sequences, cuts, **how).mean_loss(discount), discount, order)

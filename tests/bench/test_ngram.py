"""The n-gram baseline against its formula, written out naively."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ngram import DISCOUNTS, choose_discount, evidence, heldout_loss

V = 4
TOKENS = st.integers(0, V - 1)
SEQUENCES = st.lists(st.lists(TOKENS, max_size=12), min_size=1, max_size=6)


class NaiveNGram:
    """The definition, with a dictionary of counts and a recursion."""

    def __init__(
        self, sequences: list[list[int]], order: int, discount: float, skipped: int, size: int = V
    ) -> None:
        self.order, self.discount, self.size = order, discount, size
        self.follows: dict[tuple[int, ...], Counter[int]] = {}
        for sequence in sequences:
            for place in range(skipped, len(sequence)):
                for length in range(min(place, order - 1) + 1):
                    history = tuple(sequence[place - length : place])
                    self.follows.setdefault(history, Counter())[sequence[place]] += 1

    def p(self, token: int, history: tuple[int, ...]) -> float:
        shorter = self.p(token, history[1:]) if history else 1 / self.size
        after = self.follows.get(history)
        if after is None:
            return shorter
        d, total = self.discount, sum(after.values())
        return max(after[token] - d, 0) / total + d * len(after) / total * shorter

    def loss(self, sequence: list[int], place: int) -> float:
        start = max(0, place - self.order + 1)
        return -math.log(self.p(sequence[place], tuple(sequence[start:place])))


@given(SEQUENCES, SEQUENCES, st.integers(1, 4), st.sampled_from(DISCOUNTS), st.integers(0, 2))
def test_sequences_are_predicted_as_the_definition_says(
    training: list[list[int]], heldout: list[list[int]], order: int, discount: float, skipped: int
) -> None:
    naive = NaiveNGram(training, order, discount, skipped)
    wanted = [naive.loss(one, place) for one in heldout for place in range(skipped, len(one))]
    cuts = [*map(len, training), *(0 for _ in heldout)]
    found = evidence([*training, *heldout], cuts, order=order, vocabulary_size=V, given=skipped)
    np.testing.assert_allclose(found.losses(discount), wanted, rtol=1e-12)


@given(st.lists(TOKENS, min_size=2, max_size=40), st.lists(TOKENS, min_size=1), st.integers(1, 5))
def test_every_held_out_token_of_a_stream_is_predicted_once_from_what_is_before_it(
    training: list[int], heldout: list[int], order: int
) -> None:
    found = heldout_loss([training], [heldout], order=order, vocabulary_size=V)
    naive = NaiveNGram([training], order, found.discount, 0)
    whole = training + heldout
    losses = [naive.loss(whole, place) for place in range(len(training), len(whole))]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert found.order == order


def test_a_large_vocabulary_agrees_with_the_definition() -> None:
    """Long grams of ids far apart: a key that overflowed would mix them up."""
    order, draw = 6, np.random.default_rng(0)
    ids = draw.choice([0, 1, 4999, 9998, 9999], size=3000).tolist()
    naive = NaiveNGram([ids], order, 0.7, 0, size=10_000)
    wanted = [naive.loss(ids, place) for place in range(200)]
    found = evidence([ids, ids[:200]], [len(ids), 0], order=order, vocabulary_size=10_000)
    np.testing.assert_allclose(found.losses(0.7), wanted, rtol=1e-12)


def test_the_discount_is_chosen_on_the_training_ids_alone() -> None:
    draw = np.random.default_rng(1)
    training = draw.integers(0, V, 400)
    results = [
        heldout_loss([training], [heldout], order=3, vocabulary_size=V)
        for heldout in (training[-100:], np.zeros(100, int), draw.integers(0, V, 100))
    ]
    chosen = choose_discount([training], order=3, vocabulary_size=V)
    assert {found.discount for found in results} == {chosen}
    assert len({found.loss for found in results}) == 3
    poems = list(training.reshape(40, 10))
    of_poems = {
        heldout_loss(poems, heldout, order=3, vocabulary_size=V, goes_on=False).discount
        for heldout in (poems[:5], [[0, 0, 0]])
    }
    assert of_poems == {choose_discount(poems, order=3, vocabulary_size=V, given=1)}


def test_the_discount_is_the_one_that_predicts_the_last_tenth_of_training_best() -> None:
    draw = np.random.default_rng(2)
    ids = (draw.integers(0, 2, 300) + draw.integers(0, 3, 300)).tolist()
    found = evidence([ids], [270], order=3, vocabulary_size=V)
    losses = {d: found.mean_loss(d) for d in DISCOUNTS}
    assert choose_discount([ids], order=3, vocabulary_size=V) == min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == len(DISCOUNTS)


@pytest.mark.parametrize(
    ("training", "heldout", "said"),
    [
        ([[0]], [[1]], "on 1 ids; give at least 2"),
        ([[0, 1, 2, 3]], [[]], "no token to predict; hold out more"),
        ([[0, 1]] * 9, [[2]], "no token to predict"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    training: list[list[int]], heldout: list[list[int]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        heldout_loss(training, heldout, order=2, vocabulary_size=V, goes_on=len(training) == 1)

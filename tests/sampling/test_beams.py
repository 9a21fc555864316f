"""Beam search against a search through every filling."""

import itertools

import jax
import numpy as np
import pytest
from sampling_cases import MODEL, PARAMS, V, greedy_by_hand, log_softmax_after

from lstm_jax.sampling import FREE, beam_search, generate, score

FEW = (4, 5, 6, 7, 8, 9, 10, 11, 12)
"""Forbidden, so that there are few fillings."""


def log_probability(tokens: list[int], known: int) -> float:
    """Of the tokens after the prompt, one scan over the whole text."""
    scores = log_softmax_after(tokens)
    return float(sum(scores[place, tokens[place]] for place in range(known, len(tokens))))


def every_filling(
    template: list[int], penalty: float, stop: list[int] | None, forbidden: tuple[int, ...]
) -> list[tuple[float, list[int], bool]]:
    """Score, tokens without the stop sequence, and whether it stopped; the best first."""
    known = template.index(FREE)
    free = [token for token in range(V) if token not in forbidden]
    places = [free if token == FREE else [token] for token in template[known:]]
    found: dict[tuple[int, ...], tuple[float, list[int], bool]] = {}
    for filling in itertools.product(*places):
        written, stopped, run = list(filling), False, []  # type: list[int], bool, list[int]
        for place, token in enumerate(filling):
            run = [*run, token] if template[known + place] == FREE else []
            if stop is not None and run[-len(stop) :] == stop:
                written, stopped = list(filling[: place + 1]), True
                break
        if tuple(written) in found:
            continue
        nats = log_probability(template[:known] + written, known)
        kept = written[: len(written) - len(stop)] if stopped and stop is not None else written
        score = nats / len(written) ** penalty
        found[tuple(written)] = (score, template[:known] + kept, stopped)
    return sorted(found.values(), key=lambda each: -each[0])


@pytest.mark.parametrize(
    ("template", "stop", "forbidden"),
    [
        ([1, FREE, FREE, FREE], None, FEW),
        ([1, 2, FREE, FREE, FREE], [3], FEW),
        ([1, FREE, 2, FREE, 0], None, FEW),
        ([3, FREE, FREE, 1, FREE], [0, 0], (2, *FEW)),
    ],
)
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_all_fillings_finds_them_all_in_their_order(
    template: list[int], stop: list[int] | None, forbidden: tuple[int, ...], penalty: float
) -> None:
    expected = every_filling(template, penalty, stop, forbidden)
    options = {"length_penalty": penalty, "forbidden": forbidden}
    stops = [] if stop is None else [stop]
    found = beam_search(MODEL, PARAMS, template, beams=4**3, stops=stops, **options)
    assert len(found) == len(expected)
    np.testing.assert_allclose([h.score for h in found], [e[0] for e in expected], rtol=1e-5)
    assert {(tuple(h.tokens.tolist()), h.stopped) for h in found} == {
        (tuple(tokens), stopped) for _, tokens, stopped in expected
    }
    assert found[0].tokens.tolist() == expected[0][1]


def test_one_beam_is_greedy_and_more_beams_are_never_worse() -> None:
    template = [2, *[FREE] * 7]
    scores = []
    for beams in (1, 2, 4, 16):
        best = beam_search(MODEL, PARAMS, template, beams=beams)[0]
        nats = log_probability(best.tokens.tolist(), 1)
        assert best.log_probability == pytest.approx(nats, rel=1e-5)
        scores.append(best.score)
        if beams == 1:
            assert best.tokens.tolist() == greedy_by_hand(template)
    assert scores[-1] >= scores[0] - 1e-6


def test_a_long_search_is_one_search_and_ends_where_all_have_stopped() -> None:
    template = [1, *[FREE] * 1500]
    found = beam_search(MODEL, PARAMS, template, beams=3)
    for each, scored in zip(found, score(MODEL, PARAMS, [h.tokens for h in found]), strict=True):
        assert len(each.tokens) == len(template)
        assert each.log_probability == pytest.approx(scored.log_likelihood, rel=1e-4)
    assert len({tuple(each.tokens.tolist()) for each in found}) == 3
    (greedy,) = beam_search(MODEL, PARAMS, template, beams=1)
    column, key = np.array(template)[:, None], jax.random.key(0)
    expected = generate(MODEL, PARAMS, column, key=key, temperature=0.0).row(0)
    assert greedy.tokens.tolist() == expected.tolist()
    endless = [1, *[FREE] * 10_000_000]
    found = beam_search(MODEL, PARAMS, endless, beams=3, stops=[[token] for token in range(V)])
    assert [len(each.tokens) for each in found] == [1, 1, 1]


def test_a_template_without_free_places_comes_back() -> None:
    (found,) = beam_search(MODEL, PARAMS, [1, 2], beams=3)
    assert found.tokens.tolist() == [1, 2]
    assert found.log_probability == 0

"""Beam search against a search through every filling."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import FREE, beam_search

V = 4
MODEL = LanguageModel(LanguageModelConfig(cell="lstm", hidden_size=6), V)
PARAMS = jax.tree.map(lambda leaf: 3 * leaf, MODEL.init(random.key(1)))


@jax.jit
def log_softmax(tokens: jax.Array) -> jax.Array:
    """`[16, V]` of what follows each of up to 16 tokens; what fills them up bears on none."""
    return jax.nn.log_softmax(MODEL.apply(PARAMS, None, tokens[:, None])[1][:, 0])


def scores_after(tokens: list[int]) -> np.ndarray[Any, Any]:
    filled = jnp.zeros(16, jnp.int32).at[: len(tokens)].set(jnp.array(tokens, jnp.int32))
    return np.asarray(log_softmax(filled), np.float64)[: len(tokens)]


def log_probability(tokens: list[int], known: int) -> float:
    """Of the tokens after the prompt, one scan over the whole text."""
    scores = scores_after(tokens)
    return float(sum(scores[place - 1, tokens[place]] for place in range(known, len(tokens))))


def every_filling(
    template: list[int], penalty: float, stop: list[int] | None, forbidden: tuple[int, ...]
) -> list[tuple[float, list[int], bool]]:
    """Score, tokens without the stop sequence, and whether it stopped; the best first."""
    known = template.index(FREE)
    places = [
        [token] if token != FREE else [t for t in range(V) if t not in forbidden]
        for token in template[known:]
    ]
    found: dict[tuple[int, ...], tuple[float, list[int], bool]] = {}
    for filling in itertools.product(*places):
        written, stopped, run = list(filling), False, []  # type: list[int], bool, list[int]
        for place, token in enumerate(filling):
            run = [*run, token] if template[known + place] == FREE else []
            if stop is not None and run[-len(stop) :] == stop:
                written, stopped = list(filling[: place + 1]), True
                break
        key = tuple(written)
        if key in found:
            continue
        nats = log_probability(template[:known] + written, known)
        kept = written[: len(written) - len(stop)] if stopped and stop is not None else written
        found[key] = (nats / len(written) ** penalty, template[:known] + kept, stopped)
    return sorted(found.values(), key=lambda each: -each[0])


@pytest.mark.parametrize(
    ("template", "stop", "forbidden"),
    [
        ([1, FREE, FREE, FREE], None, ()),
        ([1, 2, FREE, FREE, FREE], [3], ()),
        ([1, FREE, 2, FREE, 0], None, ()),
        ([3, FREE, FREE, 1, FREE], [0, 0], (2,)),
    ],
)
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_all_fillings_finds_them_all_in_their_order(
    template: list[int], stop: list[int] | None, forbidden: tuple[int, ...], penalty: float
) -> None:
    expected = every_filling(template, penalty, stop, forbidden)
    found = beam_search(
        MODEL,
        PARAMS,
        template,
        beams=V**3,
        length_penalty=penalty,
        forbidden=forbidden,
        stops=[] if stop is None else [stop],
    )
    assert len(found) == len(expected)
    np.testing.assert_allclose([h.score for h in found], [e[0] for e in expected], rtol=1e-5)
    assert {(tuple(h.tokens.tolist()), h.stopped) for h in found} == {
        (tuple(tokens), stopped) for _, tokens, stopped in expected
    }
    assert found[0].tokens.tolist() == expected[0][1]


def test_one_beam_is_greedy_and_more_beams_are_never_worse() -> None:
    template = [2, *[FREE] * 7]
    tokens = [2]
    for _ in range(7):
        tokens.append(int(scores_after(tokens)[-1].argmax()))
    scores = []
    for beams in (1, 2, 4, 16):
        found = beam_search(MODEL, PARAMS, template, beams=beams)
        assert found[0].log_probability == pytest.approx(
            log_probability(found[0].tokens.tolist(), 1), rel=1e-5
        )
        scores.append(found[0].score)
        if beams == 1:
            assert found[0].tokens.tolist() == tokens
    assert scores[-1] >= scores[0] - 1e-6


def test_a_template_without_free_places_comes_back() -> None:
    (found,) = beam_search(MODEL, PARAMS, [1, 2], beams=3)
    assert found.tokens.tolist() == [1, 2]
    assert found.log_probability == 0


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        ([[1, FREE]], {"beams": 2}, "shape"),
        ([1, 4], {"beams": 2}, "below 4"),
        ([1, FREE], {"beams": 0}, "beams is 0"),
        ([1, FREE], {"beams": 1, "length_penalty": -1.0}, "length_penalty is -1"),
    ],
)
def test_nonsense_is_refused(template: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        beam_search(MODEL, PARAMS, template, **options)


def test_a_bidirectional_model_is_refused() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=4, bidirectional=True), V)
    with pytest.raises(ValueError, match="sees the future"):
        beam_search(model, model.init(random.key(0)), [1, FREE], beams=2)

"""Scores of texts against the softmax of the logits of each text alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import TextScore, score, scoring

MODEL = LanguageModel(LanguageModelConfig(cell="gru", hidden_size=8, embedding_size=5), 13)
PARAMS = MODEL.init(random.key(1))


@jax.jit
def log_softmax_after(tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(MODEL.apply(PARAMS, None, tokens[:, None])[1][:, 0])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("stretch", [4, 1024])
def test_scores_are_those_of_each_text_alone(
    batch_size: int, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PREFILL_CHUNK", stretch)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 13, length) for length in (9, 2, 17, 3, 5, 16, 2)]
    found = score(MODEL, PARAMS, texts, batch_size=batch_size)
    for text, each in zip(texts, found, strict=True):
        log_softmax = np.asarray(log_softmax_after(jnp.asarray(text[:-1])))
        expected = log_softmax[np.arange(len(text) - 1), text[1:]]
        np.testing.assert_allclose(each.log_probabilities, expected, rtol=1e-5, atol=1e-5)
        assert each.log_likelihood == pytest.approx(float(expected.sum()), rel=1e-5)
        assert each.perplexity == pytest.approx(math.exp(-float(expected.mean())), rel=1e-5)


def test_a_context_is_read_and_not_scored() -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 13, length) for length in (6, 1, 9)]
    contexts = [rng.integers(0, 13, length) for length in (4, 7, 1)]
    found = score(MODEL, PARAMS, texts, contexts=contexts)
    joined = score(MODEL, PARAMS, [np.append(*both) for both in zip(contexts, texts, strict=True)])
    for text, each, whole in zip(texts, found, joined, strict=True):
        np.testing.assert_array_equal(each.log_probabilities, whole.log_probabilities[-len(text) :])
    without = [[], *contexts[1:]]
    (first, *_) = score(MODEL, PARAMS, texts, contexts=without)
    np.testing.assert_allclose(
        first.log_probabilities, score(MODEL, PARAMS, texts[:1])[0].log_probabilities, rtol=1e-5
    )


def test_contexts_that_fit_no_text_are_refused() -> None:
    for contexts, said in ([[1]], "1 contexts for 2"), ([[1], [0.5]], "context 1 is float64"):
        with pytest.raises(ValueError, match=said):
            score(MODEL, PARAMS, [[1, 2], [3]], contexts=contexts)
    with pytest.raises(ValueError, match="text 1 is"):
        score(MODEL, PARAMS, [[1, 2], []], contexts=[[1], [2, 3]])


def test_a_hopeless_text_has_infinite_perplexity() -> None:
    assert TextScore(np.array([-2000.0], np.float32)).perplexity == math.inf


@pytest.mark.parametrize(
    ("text", "said"),
    [([3], "two for a text"), ([1, 13], "below 13"), ([-1, 2], "from 0"), ([0.5, 1.0], "float64")],
)
def test_nonsense_is_refused(text: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score(MODEL, PARAMS, [[1, 2], text])
    with pytest.raises(ValueError, match="batch_size is 0"):
        score(MODEL, PARAMS, [[1, 2]], batch_size=0)


def test_a_bidirectional_model_is_refused() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=4, bidirectional=True), 13)
    with pytest.raises(ValueError, match="sees the future"):
        score(model, model.init(random.key(0)), [[1, 2]])

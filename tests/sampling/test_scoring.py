"""Scores of texts against the softmax of the logits of each text alone."""

import math

import numpy as np
import pytest
from sampling_cases import MODEL, PARAMS, log_softmax_after

from lstm_jax.sampling import TextScore, score, scoring


@pytest.mark.parametrize(("batch_size", "stretch"), [(1, 1024), (3, 4), (64, 4)])
def test_scores_are_those_of_each_text_alone(
    batch_size: int, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PREFILL_CHUNK", stretch)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 13, length) for length in (9, 2, 17, 3, 5, 16, 2)]
    found = score(MODEL, PARAMS, texts, batch_size=batch_size)
    for text, each in zip(texts, found, strict=True):
        expected = log_softmax_after(text[:-1])[np.arange(1, len(text)), text[1:]]
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


def test_a_hopeless_text_has_infinite_perplexity() -> None:
    assert TextScore(np.array([-2000.0], np.float32)).perplexity == math.inf

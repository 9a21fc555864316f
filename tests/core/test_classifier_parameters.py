"""What a classifier is made of: its parameters as they are drawn, and what does not fit it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_message, assert_same_bits
from jax import random
from test_classifier import FRONT, B, E, T, V, batch, build

from lstm_jax.classifier import Classifier, ClassifierConfig


def count(**options: Any) -> int:
    model = Classifier(ClassifierConfig(**options), 10_000)
    learnt = jax.eval_shape(model.init, random.key(0))._replace(vectors=None)
    return sum(leaf.size for leaf in jax.tree.leaves(learnt))


def test_parameters_are_as_many_as_published_models_have() -> None:
    published = {"layers": 2, "hidden_size": 64}
    assert count(frozen_embedding=True, **published) == 29_440 + 33_024 + 2_080 + 33 == 64_577
    assert count(**published) == 64_577 + 10_000 * 50
    assert count(frozen_embedding=True, learn_missing=True, **published) == count(**published)
    both = 2 * 29_440 + 2 * (4 * 64 * (128 + 64 + 1))
    frozen = {"frozen_embedding": True, "bidirectional": True, **published}
    assert count(**frozen) == both + (128 * 32 + 32) + 33
    assert count(dense_size=0, **frozen) == both + 128 + 1


def test_narrow_parameters_are_float32_s_cast() -> None:
    model, _ = build(jnp.float32, initialisation="tf1")
    expected = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.init(random.key(0)))
    assert_same_bits(model.init(random.key(0), jnp.bfloat16), expected)


@pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])
def test_weights_follow_the_initialisation(initialisation: str) -> None:
    config = ClassifierConfig(hidden_size=200, initialisation=initialisation)
    params = Classifier(config, 300).init(random.key(0))
    embedding, w, b = (np.asarray(a) for a in (params.embedding, *params.dense))
    if initialisation == "pytorch":
        assert abs(embedding.std() - 1) < 0.05
        bound = 1 / math.sqrt(200)
        assert 0.8 * bound < np.abs(b).max() <= bound
    else:
        limit = 0.05 if initialisation == "keras" else math.sqrt(6 / (300 + 50))
        assert 0.98 * limit < np.abs(embedding).max() <= limit
        bound = math.sqrt(6 / (200 + 32))
        for biases in (b, params.output.b):
            np.testing.assert_array_equal(biases, 0)
    assert 0.98 * bound < np.abs(w).max() <= bound


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"embedding_size": 0}, ("embedding_size is 0", "at least 1")),
        ({"dense_size": -1}, ("dense_size is -1", "at least 0")),
        ({"dense_dropout": 1.0}, ("dense_dropout is 1.0", "below 1")),
        ({"dense_dropout": float("nan")}, ("dense_dropout is nan",)),
        ({"word_dropout": -0.1}, ("word_dropout is -0.1", "at least 0")),
        ({"pooling": "first"}, ("'first'", "last", "max", "mean")),
        ({"layers": 0}, ("layers is 0",)),
    ],
)
def test_config_names_what_does_not_fit(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert_message(lambda: ClassifierConfig(**options), *parts)


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"tokens": jnp.zeros((T, B))}, ("tokens", "float32", "integers [T, B]")),
        ({"tokens": jnp.zeros(T, jnp.int32)}, ("tokens", "(8,)", "[T, B]")),
        ({"mask": FRONT.T}, ("mask", "(4, 8)", "(8, 4)")),
        ({"mask": FRONT.astype(np.float32)}, ("mask", "float32", "bool")),
        ({"labels": jnp.zeros((B, 1))}, ("labels", "(4, 1)", "(4,)")),
        ({"weights": jnp.zeros(B + 1)}, ("weights", "(5,)", "(4,)")),
    ],
)
def test_calls_name_what_does_not_fit(changed: dict[str, Any], parts: tuple[str, ...]) -> None:
    model, params = build(jnp.float32, frozen_embedding=True)
    tokens, labels, mask = batch()
    given = {"tokens": tokens, "labels": labels, "mask": mask, **changed}
    assert_message(lambda: model.sums(params, **given), *parts)
    if not {"labels", "weights"} & set(changed):
        del given["labels"]
        assert_message(lambda: model.logits(params, **given), *parts)


@pytest.mark.parametrize(
    ("vectors", "frozen", "parts"),
    [
        (None, True, ("params.vectors is None", "frozen_embedding", "(11, 3)")),
        (jnp.zeros((V + 1, E)), True, ("params.vectors", "(12, 3)", "(11, 3)")),
        (jnp.zeros((V, E), jnp.int32), True, ("params.vectors", "int32", "floats")),
        (jnp.zeros((V, E)), False, ("params.vectors", "frozen_embedding")),
    ],
)
def test_vectors_that_do_not_fit_are_named(
    vectors: Any, frozen: bool, parts: tuple[str, ...]
) -> None:
    model, params = build(jnp.float32, frozen_embedding=frozen)
    params = params._replace(vectors=vectors)
    assert_message(lambda: model.logits(params, batch()[0]), *parts)

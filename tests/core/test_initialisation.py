"""The distributions that weights are drawn from: of cells, language models and classifiers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_same_bits, dense_forms, forms, init
from jax import random

from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.models import LanguageModel, LanguageModelConfig, with_frequencies

D, H, V, E = 60, 40, 300, 50
initialisations = pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])


def uniform_moments(array: Any, bound: float) -> None:
    """Inside the bound, close to it, centred, and of a uniform distribution's variance."""
    values = np.asarray(array, np.float64).ravel()
    assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    # Five standard errors of the mean and of the variance.
    error = 5 / math.sqrt(values.size)
    assert abs(values.mean()) < error * bound / math.sqrt(3)
    assert abs(values.var() / (bound**2 / 3) - 1) < error * math.sqrt(0.8)


def init_as(form: str, initialisation: str, dtype: Any = jnp.float32) -> Any:
    return init(form, random.key(2), D, H, dtype, initialisation=initialisation)


@dense_forms
def test_pytorch_draws_every_weight_within_one_over_root_hidden(form: str) -> None:
    params = init_as(form, "pytorch")
    bound = 1 / math.sqrt(H)
    uniform_moments(params.w_x, bound)
    uniform_moments(params.w_h, bound)
    # The sum of two uniform biases: up to twice the bound, twice the variance.
    values = np.asarray(params.b[: 2 * H] if form == "gru_after" else params.b)
    assert bound < np.abs(values).max() <= 2 * bound
    assert abs(values.var() / (2 * bound**2 / 3) - 1) < 5 * math.sqrt(1.5 / values.size)
    if form == "gru_after":
        # Here the two biases stay apart.
        for bias in (params.b[2 * H :], params.b_hn):
            assert 0.8 * bound < np.abs(bias).max() <= bound


@dense_forms
def test_keras_draws_glorot_and_orthogonal_weights(form: str) -> None:
    params = init_as(form, "keras")
    uniform_moments(params.w_x, math.sqrt(6 / (D + params.w_x.shape[1])))
    # Rows of [H, G] with G >= H are orthonormal.
    np.testing.assert_allclose(params.w_h @ params.w_h.T, np.eye(H), atol=1e-5)
    assert_constant_biases(params, [0, 1, 0, 0] if form.startswith("lstm") else [0])


@dense_forms
def test_tf1_draws_one_glorot_kernel_over_inputs_and_state(form: str) -> None:
    params = init_as(form, "tf1")
    kernel = np.concatenate([params.w_x, params.w_h])
    cut = 2 * H if form.startswith("gru") else kernel.shape[1]
    for part in np.split(kernel, [cut], axis=1):
        if part.size:
            uniform_moments(part, math.sqrt(6 / sum(part.shape)))
    assert_constant_biases(params, {"gru": [1, 1, 0], "lst": [0, 1, 0, 0]}.get(form[:3], [0]))


def assert_constant_biases(params: Any, of_gates: list[float]) -> None:
    np.testing.assert_array_equal(params.b, np.repeat(of_gates, len(params.b) // len(of_gates)))
    if getattr(params, "b_hn", None) is not None:
        np.testing.assert_array_equal(params.b_hn, 0)


@forms
@initialisations
def test_no_two_gates_and_no_two_keys_share_weights(form: str, initialisation: str) -> None:
    params = init_as(form, initialisation)
    for weights in (params.w_x, *(getattr(params, name, params.w_x) for name in ("w_h", "a", "p"))):
        flat = np.asarray(weights).ravel()
        assert np.unique(flat).size > 0.99 * flat.size
    assert_same_bits(init_as(form, initialisation), params)
    others = [init(form, random.key(seed), D, H).w_x for seed in (3, 4)]
    assert not np.any(np.asarray(others[0]) == np.asarray(others[1]))


@forms
@initialisations
def test_narrow_weights_are_float32_s_cast(form: str, initialisation: str) -> None:
    expected = init_as(form, initialisation)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert_same_bits(init_as(form, initialisation, dtype), cast(expected, dtype))


def cast(params: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), params)


def build(kind: str, **options: Any) -> Any:
    options |= {"hidden_size": 200, "embedding_size": E}
    if kind == "classifier":
        return Classifier(ClassifierConfig(**options), V)
    return LanguageModel(LanguageModelConfig(**options), V)


@pytest.mark.parametrize("kind", ["classifier", "language model"])
@initialisations
def test_embedding_and_affine_layers_follow_the_initialisation(
    kind: str, initialisation: str
) -> None:
    """Of Keras and TF1 the embedding is uniform, and biases are zeros; narrow ones are cast."""
    model = build(kind, initialisation=initialisation)
    params, narrow = (model.init(random.key(0), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert_same_bits(narrow, cast(params, jnp.bfloat16))
    w, b = params.output if kind == "language model" else params.dense
    limit = 1 / math.sqrt(200)
    if initialisation == "pytorch":
        assert abs(params.embedding.std() - 1) < 0.05
        assert 0.8 * limit < np.abs(b).max() <= limit
    else:
        limit = math.sqrt(6 / sum(w.shape))
        bound = {"keras": 0.05, "tf1": math.sqrt(6 / (V + E))}[initialisation]
        uniform_moments(params.embedding, bound)
        for biases in (b, params.output.b):
            np.testing.assert_array_equal(biases, 0)
    assert 0.98 * limit < np.abs(w).max() <= limit


def test_weights_have_the_standard_deviation_that_is_given() -> None:
    model = build("language model", output_stddev=0.1, embedding_stddev=0.1)
    params, narrow = (model.init(random.key(0), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert_same_bits(narrow, cast(params, jnp.bfloat16))
    np.testing.assert_array_equal(params.output.b, 0)
    # flax and TF1 differ on whether the stddev is before or after truncation.
    assert 0.08 < params.output.w.std() < 0.105
    assert np.abs(params.output.w).max() <= 0.2 / 0.8796 + 1e-6
    assert abs(params.embedding.std() - 0.1) < 0.005
    counts = np.zeros(V)
    counts[[0, 3]] = 100_000, 7
    b = with_frequencies(params, counts).output.b
    assert_same_bits(with_frequencies(narrow, counts).output.b, b.astype(jnp.bfloat16))

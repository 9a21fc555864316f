"""The language model: losses, folded embeddings, chunks, a step of training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits
from jax import random

from lstm_jax.losses import OutputParams
from lstm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    TiedOutputParams,
    output_layer,
    with_frequencies,
)

T, B, H, V = 8, 3, 5, 7

configs = pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"},
        pytest.param({"layers": 2, "embedding_size": 3}, marks=pytest.mark.slow),
        {"cell": "gru", "embedding_size": 3, "bidirectional": True},
        pytest.param({"cell": "gru", "gru_reset": "before"}, marks=pytest.mark.slow),
        {"cell": "lstm", "embedding_size": H, "tied": True},
    ],
    ids=["lstm", "lstm-2-embedding", "gru-both-embedding", "gru-before", "tied"],
)


def build(vocabulary: int = V, dtype: Any = jnp.float64, **options: Any) -> Any:
    model = LanguageModel(LanguageModelConfig(**{"hidden_size": H, **options}), vocabulary)
    return model, model.init(random.key(0), dtype)


def batch(seed: int = 0, vocabulary: int = V) -> tuple[Any, Any, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, vocabulary, (2, T, B), np.int32)
    return tokens, targets, {"mask": rng.random((T, B)) < 0.8, "resets": rng.random((T, B)) < 0.2}


@partial(jax.jit, static_argnums=0)
def sums_and_gradients(
    model: LanguageModel, params: Any, carry: Any, tokens: Any, targets: Any, **flags: Any
) -> Any:
    def loss(params: Any) -> Any:
        sums, final = model.token_sums(params, carry, tokens, targets, **flags)
        return sums.loss / sums.weight, (sums, final)

    (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return results, gradients


@configs
def test_token_sums_are_those_of_all_logits(float64: None, options: dict[str, Any]) -> None:
    model, params = build(**options)
    tokens, targets, flags = batch()

    def naive(params: Any) -> Any:
        carry, logits = model.apply(params, None, tokens, **flags)
        log_likelihood = jnp.take_along_axis(
            jax.nn.log_softmax(logits), targets[..., None], axis=-1
        )[..., 0]
        correct = logits.argmax(-1) == targets
        weight = flags["mask"].sum()
        loss = -(log_likelihood * flags["mask"]).sum()
        sums = (loss, (correct & flags["mask"]).sum(), weight)
        return loss / weight, (sums, carry)

    (_, (sums, carry)), expected = jax.jit(jax.value_and_grad(naive, has_aux=True))(params)
    (found, found_carry), gradients = sums_and_gradients(
        model, params, None, tokens, targets, **flags
    )
    assert_near(tuple(found), sums, 1e-12)
    assert_near(found_carry, carry, 1e-12)
    assert_near(gradients, expected, 1e-10)


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_folded_embedding_is_the_gathered_one(float64: None, bidirectional: bool) -> None:
    """Fewer distinct tokens than places fold it; the same tokens of a larger vocabulary don't."""
    options = {"embedding_size": 3, "bidirectional": bidirectional, "layers": 2}
    folded, params = build(V, **options)
    gathered, larger = build(T * B, **options)
    tokens, targets, flags = batch()
    assert folded._folded(params, tokens, False).embedding is None
    assert gathered._folded(larger, tokens, False).embedding is not None
    # The larger one's other tokens: never read, and impossible to predict.
    out = larger.output
    larger = larger._replace(
        embedding=larger.embedding.at[:V].set(params.embedding),
        layers=params.layers,
        output=OutputParams(
            out.w.at[:, :V].set(params.output.w).at[:, V:].set(0),
            out.b.at[:V].set(params.output.b).at[V:].set(-1e9),
        ),
    )
    results, gradients = sums_and_gradients(folded, params, None, tokens, targets, **flags)
    more, more_gradients = sums_and_gradients(gathered, larger, None, tokens, targets, **flags)
    assert_near(results, more, 1e-12)
    assert_near(gradients.layers, more_gradients.layers, 1e-10)
    assert_near(gradients.embedding, more_gradients.embedding[:V], 1e-10)
    assert_near(gradients.output.w, more_gradients.output.w[:, :V], 1e-10)
    np.testing.assert_array_equal(more_gradients.embedding[V:], 0)


@pytest.mark.parametrize("embedding_size", [None, 3])
def test_steps_in_a_python_loop_are_the_whole(float64: None, embedding_size: int | None) -> None:
    model, params = build(layers=2, embedding_size=embedding_size)
    tokens, _, _ = batch()
    carry, hs = jax.jit(model.hidden)(params, None, tokens)
    step, stepped, each = jax.jit(model.step), model.zero_carry(params, B), []
    for token in tokens:
        stepped, h = step(params, stepped, token)
        each.append(h)
    assert_near((stepped, jnp.stack(each)), (carry, hs), 1e-12)


def test_tokens_outside_the_vocabulary_are_the_nearest_one(float64: None) -> None:
    """However they enter: looked up in gates, folded, gathered, or a step at a time."""
    for vocabulary, embedding_size in ((V, None), (V, 3), (T * B, 3)):
        model, params = build(vocabulary, embedding_size=embedding_size)
        given = np.array([[-2, vocabulary + 3]] * T)
        nearest = np.array([[0, vocabulary - 1]] * T)
        hidden, step = jax.jit(model.hidden), jax.jit(model.step)
        found, expected = (hidden(params, None, tokens) for tokens in (given, nearest))
        assert_near(found, expected, 1e-12)
        carry = model.zero_carry(params, 2)
        steps = [step(params, carry, tokens[0]) for tokens in (given, nearest)]
        assert_near(*steps, 1e-12)


@pytest.mark.parametrize("embedding_size", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_whole_is_chunked_with_the_carry(float64: None, embedding_size: int | None) -> None:
    model, params = build(layers=2, embedding_size=embedding_size)
    tokens, targets, flags = batch()
    (whole, final), _ = sums_and_gradients(model, params, None, tokens, targets, **flags)
    carry, total = model.zero_carry(params, B), 0.0
    for part in (slice(0, 4), slice(4, 8)):
        (sums, carry), _ = sums_and_gradients(
            model, params, carry, tokens[part], targets[part],
            **{name: array[part] for name, array in flags.items()},
        )  # fmt: skip
        total = jax.tree.map(jnp.add, total, sums) if total else sums
    assert_near(total, whole, 1e-12)
    assert_near(carry, final, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm"},
        pytest.param(
            {"cell": "gru", "gru_reset": "before", "embedding_size": 3}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_small_step_against_the_gradient_lowers_the_loss(options: dict[str, Any]) -> None:
    model, params = build(dtype=jnp.float32, **options)
    tokens, targets, flags = batch()

    def mean(params: Any) -> tuple[Any, Any]:
        (sums, _), gradients = sums_and_gradients(model, params, None, tokens, targets, **flags)
        return sums.loss / sums.weight, gradients

    loss, gradients = mean(params)
    rate = 0.01
    lower, _ = mean(jax.tree.map(lambda p, g: p - rate * g, params, gradients))
    # By about the rate times the squared gradient: the first-order term.
    drop = rate * sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients))
    assert 0.8 * drop < loss - lower < 1.2 * drop


def test_uniform_model_has_the_vocabulary_as_perplexity(float64: None) -> None:
    model, params = build()
    params = params._replace(output=jax.tree.map(jnp.zeros_like, params.output))
    tokens, targets, flags = batch()
    (sums, _), _ = sums_and_gradients(model, params, None, tokens, targets, **flags)
    assert abs(math.exp(sums.loss / sums.weight) - V) < 1e-12


@pytest.mark.parametrize(
    "vocabulary",
    [pytest.param(V, id="folded", marks=pytest.mark.slow), pytest.param(4 * T * B, id="gathered")],
)
def test_a_tied_embedding_s_gradient_is_the_sum_of_both_uses(
    float64: None, vocabulary: int
) -> None:
    tied, params = build(vocabulary, embedding_size=H, tied=True)
    plain, other = build(vocabulary, embedding_size=H)
    assert isinstance(params.output, TiedOutputParams)
    assert isinstance(other.output, OutputParams)
    other = params._replace(output=output_layer(params))
    tokens, targets, flags = batch(vocabulary=vocabulary)
    results, gradients = sums_and_gradients(tied, params, None, tokens, targets, **flags)
    expected, apart = sums_and_gradients(plain, other, None, tokens, targets, **flags)
    assert_near(results, expected, 1e-12)
    assert_near(gradients.embedding, apart.embedding + apart.output.w.T, 1e-12)
    assert_near((gradients.layers, gradients.output.b), (apart.layers, apart.output.b), 1e-12)


def test_output_dropout_scales_what_the_output_layer_sees(float64: None) -> None:
    model, params = build(hidden_size=64, output_dropout=0.25)
    tokens = np.arange(400, dtype=np.int32).reshape(100, 4) % V
    key = random.key(1)
    hidden = jax.jit(model.hidden)
    carry, expected = hidden(params, None, tokens)
    dropped_carry, found = hidden(params, None, tokens, dropout_key=key)
    assert_near(dropped_carry, carry, 1e-12)
    kept = found != 0
    assert_near(found, jnp.where(kept, expected / 0.75, 0), 1e-12)
    # 25,600 draws: five standard errors are 0.0135; no two times or sequences share a mask.
    assert abs(kept.mean() - 0.75) < 0.0135
    assert len({row.tobytes() for row in np.asarray(kept).reshape(400, 64)}) == 400


def test_output_stddev_truncates_at_two_of_them() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=64, output_stddev=0.1), 200)
    w, b = model.init(random.key(0)).output
    np.testing.assert_array_equal(b, 0)
    values = np.asarray(w)
    # flax and TF1 differ on whether the stddev is before or after truncation.
    assert 0.08 < values.std() < 0.105
    assert np.abs(values).max() <= 0.2 / 0.8796 + 1e-6


@pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])
def test_embedding_and_output_follow_the_initialisation(initialisation: str) -> None:
    vocabulary, size = 200, 30
    model = LanguageModel(
        LanguageModelConfig(hidden_size=64, embedding_size=size, initialisation=initialisation),
        vocabulary,
    )
    params = model.init(random.key(0))
    embedding, w, b = (np.asarray(a) for a in (params.embedding, *params.output))
    if initialisation == "pytorch":
        assert abs(embedding.std() - 1) < 0.05
        bound = 1 / math.sqrt(64)
        assert 0.9 * bound < np.abs(b).max() <= bound
    else:
        limit = 0.05 if initialisation == "keras" else math.sqrt(6 / (vocabulary + size))
        assert 0.98 * limit < np.abs(embedding).max() <= limit
        np.testing.assert_array_equal(b, 0)
        bound = math.sqrt(6 / (64 + vocabulary))
    assert 0.98 * bound < np.abs(w).max() <= bound


@pytest.mark.parametrize(
    "options",
    [
        {"initialisation": "pytorch"},
        {"initialisation": "tf1", "output_stddev": 0.1, "embedding_stddev": 0.1},
    ],
)
def test_narrow_parameters_are_float32_s_cast(options: dict[str, Any]) -> None:
    model, params = build(dtype=jnp.float32, embedding_size=3, **options)
    expected = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    found = model.init(random.key(0), jnp.bfloat16)
    assert_same_bits(found, expected)
    counts = np.array([100_000, 1, 0, 0, 0, 0, 7])
    b = with_frequencies(params, counts).output.b
    assert_same_bits(with_frequencies(found, counts).output.b, b.astype(jnp.bfloat16))


def test_no_times_have_no_loss_and_keep_the_carry() -> None:
    model, params = build(dtype=jnp.float32, bidirectional=True, layers=2, remat=2, dropout=0.5)
    tokens, targets, flags = batch()
    carry = jax.tree.map(jnp.ones_like, model.zero_carry(params, B))
    flags = {name: flag[:0] for name, flag in flags.items()}
    flags["dropout_key"] = random.key(0)
    sums, final = model.token_sums(params, carry, tokens[:0], targets[:0], **flags)
    assert_same_bits(final, carry)
    assert not any(sums)

"""The dtypes and the precision of every product, the structure of the fast path, and lowering."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core_cases import (
    UNITWISE_FORMS,
    assert_near,
    dot_products,
    draw_carry,
    equations,
    forms,
    init,
    on,
    run,
    run_with_gradients,
    weighted,
)
from hypothesis import given
from hypothesis import strategies as st
from jax import lax, random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.precision import products
from lstm_jax.recurrence import layer

T, B, D, H = 6, 3, 4, 5


def draw(form: str, dtype: Any = jnp.float32) -> Any:
    keys = random.split(random.key(0), 3)
    params = init(form, keys[0], D, H, dtype)
    return params, draw_carry(keys[1], params, B), random.normal(keys[2], (T, B, D), dtype)


def gradient_jaxpr(form: str, tokens: bool = False, **options: Any) -> Any:
    params, carry, xs = draw(form)
    if tokens:
        ids = jnp.zeros((T, B), jnp.int32)

        def of_tokens(params: Any, carry: Any) -> Any:
            return weighted(1, layer(params, carry, ids, **on(params, options)))

        return jax.make_jaxpr(jax.grad(of_tokens, (0, 1)))(params, carry)

    def loss(*inputs: Any) -> Any:
        return weighted(1, layer(*inputs, **on(params, options)))

    return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(params, carry, xs)


# Weight gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(
    shape=st.sampled_from([(1, 1, 1, 1), (5, 4, 40, 3), (2, 3, 4, 37), (4, 1, 16, 16)]),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_weight_gradient_is_the_sum_of_outer_products_of_its_operands(
    dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    """Whichever side is longer, and whatever form the product takes on this platform."""
    outer_products_are_summed(dtype, shape, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_weight_gradient_of_any_shape_is_that_sum(
    dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    outer_products_are_summed(dtype, shape, seed)


def outer_products_are_summed(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    times, batch, size, gates = shape
    policy = products(dtype, jnp.float32)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    xs = jnp.asarray(rng.normal(size=(times, batch, size)), jnp.float32)
    dout = jnp.asarray(rng.normal(size=(times, batch, gates)), jnp.float32)
    wide = [np.asarray(policy.cast(a).astype(jnp.float32), np.float64) for a in (xs, dout)]
    found = jax.jit(policy.weight_gradient)(xs, dout)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.einsum("tbd,tbg->dg", *wide), atol=1e-5, rtol=1e-5)


# Dtypes ------------------------------------------------------------------------------------------


def dtypes(tree: Any) -> set[Any]:
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@forms
@pytest.mark.parametrize("compute_dtype", ["float32", "tf32", "bfloat16"])
def test_float32_parameters_have_float32_results_and_gradients(
    form: str, compute_dtype: str
) -> None:
    results = jax.eval_shape(partial(run_with_gradients, compute_dtype=compute_dtype), *draw(form))
    assert dtypes(results) == {jnp.dtype("float32")}


@forms
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_float64_stays_float64(float64: None, form: str, backend: str) -> None:
    results = jax.eval_shape(partial(run_with_gradients, backend=backend), *draw(form, jnp.float64))
    assert dtypes(results) == {jnp.dtype("float64")}


@forms
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_bfloat16_parameters_have_float32_carries_and_outputs(form: str, backend: str) -> None:
    results, (dparams, dcarry, dxs) = jax.eval_shape(
        partial(run_with_gradients, compute_dtype="bfloat16", backend=backend),
        *draw(form, jnp.bfloat16),
    )
    assert dtypes((results, dcarry)) == {jnp.dtype("float32")}
    assert dtypes((dparams, dxs)) == {jnp.dtype("bfloat16")}


@forms
def test_bfloat16_products_are_within_two_percent(form: str) -> None:
    """Three significant digits an operand; sums and the carry keep float32."""
    inputs = draw(form)
    found = run_with_gradients(*inputs, compute_dtype="bfloat16")
    expected = run_with_gradients(*inputs)
    assert_near(found, expected, 0.02)
    # And it is another computation.
    assert np.any(np.asarray(found[0][1]) != np.asarray(expected[0][1]))


def test_products_decides_dtypes_and_precision_together() -> None:
    float32, bfloat16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
    assert products(None, float32) == (float32, float32, lax.Precision.HIGHEST)
    assert products("float32", bfloat16) == (float32, float32, lax.Precision.HIGHEST)
    assert products("tf32", float32) == (float32, float32, lax.Precision.HIGH)
    assert products("bfloat16", float32) == (bfloat16, float32, lax.Precision.DEFAULT)
    for nonsense in ("float16", "", "FLOAT32"):
        with pytest.raises(ValueError, match=r"compute_dtype is '.*'; choose one of float32"):
            products(nonsense, float32)  # type: ignore[arg-type]


# Every product of a gradient ---------------------------------------------------------------------


def assert_all(jaxpr: Any, operand: str, result: str, precision: lax.Precision) -> None:
    for equation, _ in dot_products(jaxpr):
        assert {v.aval.dtype for v in equation.invars} == {jnp.dtype(operand)}, equation
        assert equation.outvars[0].aval.dtype == jnp.dtype(result), equation
        assert set(equation.params["precision"] or (lax.Precision.DEFAULT,)) == {precision}


@forms
@pytest.mark.parametrize("tokens", [False, True])
def test_every_bfloat16_product_has_float32_sums(form: str, tokens: bool) -> None:
    jaxpr = gradient_jaxpr(form, tokens, compute_dtype="bfloat16")
    assert tokens or dot_products(jaxpr)
    assert_all(jaxpr, "bfloat16", "float32", lax.Precision.DEFAULT)


@forms
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_every_float32_product_is_full_float32(form: str, backend: str) -> None:
    jaxpr = gradient_jaxpr(form, backend=backend)
    assert dot_products(jaxpr)
    assert_all(jaxpr, "float32", "float32", lax.Precision.HIGHEST)


def language_model(**options: Any) -> tuple[LanguageModel, Any]:
    model = LanguageModel(LanguageModelConfig(**{"hidden_size": 4, **options}), 41)
    return model, model.init(random.key(0))


def language_model_gradient(model: LanguageModel, params: Any, batch: int = B) -> Any:
    tokens = jnp.zeros((T, batch), jnp.int32)
    mask = jnp.ones((T, batch), bool)

    def loss(params: Any) -> Any:
        return model.token_sums(params, None, tokens, tokens, mask=mask)[0].loss

    return jax.make_jaxpr(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("embedding_size", [None, 3])
@pytest.mark.parametrize("batch", [B, 40])
def test_every_product_of_a_language_model_follows_its_policy(
    embedding_size: int | None, batch: int
) -> None:
    """With a batch of 40 the embedding is folded into the first layer."""
    model, params = language_model(embedding_size=embedding_size, layers=2)
    jaxpr = language_model_gradient(model, params, batch)
    assert_all(jaxpr, "float32", "float32", lax.Precision.HIGHEST)
    model, params = language_model(
        embedding_size=embedding_size, layers=2, compute_dtype="bfloat16"
    )
    jaxpr = language_model_gradient(model, params, batch)
    assert_all(jaxpr, "bfloat16", "float32", lax.Precision.DEFAULT)


# Structure ---------------------------------------------------------------------------------------

# Recurrent products of a step; reset before the product splits the GRU's into two.
RECURRENT = {"rnn": 1, "lstm": 1, "gru_after": 1, "gru_before": 2, "lstm_projected": 2}
RECURRENT |= dict.fromkeys(UNITWISE_FORMS, 0)


@forms
@pytest.mark.parametrize("tokens", [False, True])
def test_forward_has_one_product_outside_the_scan(form: str, tokens: bool) -> None:
    params, carry, xs = draw(form)
    xs = jnp.zeros((T, B), jnp.int32) if tokens else xs
    found = [inside for _, inside in dot_products(jax.make_jaxpr(run)(params, carry, xs))]
    assert found.count(False) == (0 if tokens else 1)
    assert found.count(True) == RECURRENT[form]


@forms
@pytest.mark.parametrize("tokens", [False, True])
def test_gradient_has_one_product_a_weight_outside_the_scans(form: str, tokens: bool) -> None:
    found = dot_products(gradient_jaxpr(form, tokens))
    outside = sorted(e.outvars[0].aval.shape for e, inside in found if not inside)
    inside = [e for e, inside in found if inside]
    params, _, _ = draw(form)
    gates = params.w_x.shape[1]
    split = [(H, gates)] if RECURRENT[form] else []
    split = [(H, 2 * H), (H, H)] if form == "gru_before" else split
    split += [(H, H)] if form == "lstm_projected" else []
    dense = [(T, B, gates), (T, B, D), (D, gates)]
    assert outside == sorted(split if tokens else dense + split)
    # Forward and reverse scan: the recurrent product, and its transpose.
    assert len(inside) == 2 * RECURRENT[form]
    for equation in inside:
        assert equation.outvars[0].aval.shape[0] == B


def largest_array(jaxpr: Any) -> tuple[int, ...]:
    shapes = [
        v.aval.shape for e, _ in equations(jaxpr) for v in e.outvars if hasattr(v.aval, "shape")
    ]
    return max(shapes, key=np.prod)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("embedding_size", [None, 3])
def test_neither_one_hot_inputs_nor_all_logits_ever_exist(
    cell: str, embedding_size: int | None
) -> None:
    """No array is as large as T * B * V, which either would be."""
    model, params = language_model(cell=cell, embedding_size=embedding_size)
    times_batch = 5
    jaxpr = language_model_gradient(model, params, times_batch)
    limit = T * times_batch * model.vocabulary_size
    assert np.prod(largest_array(jaxpr)) < limit
    # The search would find them.
    tokens = jnp.zeros((T, times_batch), jnp.int32)
    naive = jax.make_jaxpr(lambda params: model.apply(params, None, tokens)[1])(params)
    assert np.prod(largest_array(naive)) >= limit


# Lowering for accelerators that are not here -----------------------------------------------------

PLATFORMS = ("cpu", "tpu", "cuda")


@forms
@pytest.mark.parametrize("backend", ["auto", "fast", "reference"])
def test_layer_lowers(form: str, backend: str) -> None:
    inputs = draw(form)
    mask = jnp.ones((T, B), bool)
    options = {"backend": backend, "mask": mask, "resets": mask}
    lower = jax.export.export(
        jax.jit(partial(layer, **on(inputs[0], options))), platforms=PLATFORMS
    )
    assert lower(*inputs).platforms == PLATFORMS


@pytest.mark.parametrize("compute_dtype", ["float32", "tf32", "bfloat16"])
def test_training_step_lowers(compute_dtype: str) -> None:
    model, params = language_model(
        layers=2, cell="gru", dropout=0.5, embedding_size=3, compute_dtype=compute_dtype
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    @jax.jit
    def step(params: Any, state: Any, carry: Any, tokens: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            sums, final = model.token_sums(params, carry, tokens[:-1], tokens[1:], dropout_key=key)
            return sums.loss / sums.weight, final

        (value, final), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new_state, final, value

    inputs = (
        params,
        optimizer.init(params),
        model.zero_carry(params, B),
        jnp.zeros((T + 1, B), jnp.int32),
        random.key(0),
    )
    exported = jax.export.export(step, platforms=PLATFORMS)(*inputs)
    assert exported.platforms == PLATFORMS

"""The dtypes and the precision of every product, the structure of the fast path, and lowering."""

from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    PLAIN_FORMS,
    UNITWISE_FORMS,
    B,
    D,
    H,
    T,
    assert_near,
    dot_products,
    draw,
    equations,
    forms,
    kinds,
    on,
    run,
    run_with_gradients,
    slow,
    weighted,
)
from hypothesis import given
from hypothesis import strategies as st
from jax import lax, random

from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams
from lstm_jax.precision import products
from lstm_jax.recurrence import layer

V = 41
TOKENS = jnp.zeros((T, B), jnp.int32)


def gradient_jaxpr(form: str, tokens: bool = False, dtype: str = "float32", **options: Any) -> Any:
    params, carry, xs = draw(form, dtype=dtype)

    def loss(params: Any, carry: Any, xs: Any) -> Any:
        return weighted(1, layer(params, carry, xs, **on(params, options)))

    if tokens:
        return jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, carry, TOKENS)
    return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(params, carry, xs)


# Weight gradients --------------------------------------------------------------------------------


any_shape = st.tuples(*(st.integers(1, largest) for largest in (5, 4, 40, 40)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shapes",
    [
        st.sampled_from([(1, 1, 1, 1), (5, 4, 40, 3), (2, 3, 4, 37), (4, 1, 16, 16)]),
        pytest.param(any_shape, marks=slow),
    ],
    ids=["some", "any"],
)
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_a_weight_gradient_is_the_sum_of_outer_products_of_its_operands(
    dtype: Any, shapes: Any, data: st.DataObject, seed: int
) -> None:
    """Whichever side is longer, and whatever form the product takes on this platform."""
    times, batch, size, gates = data.draw(shapes)
    policy = products(dtype, jnp.float32)
    rng = np.random.default_rng(seed)
    both = [
        jnp.asarray(rng.normal(size=(times, batch, each)), jnp.float32) for each in (size, gates)
    ]
    wide = [np.asarray(policy.cast(a).astype(jnp.float32), np.float64) for a in both]
    found = jax.jit(policy.weight_gradient)(*both)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.einsum("tbd,tbg->dg", *wide), atol=1e-5, rtol=1e-5)


# Dtypes ------------------------------------------------------------------------------------------


def dtypes(tree: Any) -> set[Any]:
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@forms
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *(("float32", {"compute_dtype": each}) for each in ("float32", "tf32", "bfloat16")),
        *(("float64", {"backend": each}) for each in ("fast", "reference")),
        *(
            ("bfloat16", {"compute_dtype": "bfloat16", "backend": each})
            for each in ("fast", "reference")
        ),
    ],
)
def test_results_are_float32_or_wider_and_gradients_as_what_they_are_of(
    float64: None, form: str, dtype: str, options: dict[str, Any]
) -> None:
    inputs = draw(form, dtype=dtype)
    results, gradients = jax.eval_shape(partial(run_with_gradients, **options), *inputs)
    wide = "float32" if dtype == "bfloat16" else dtype
    assert dtypes(results) == {jnp.dtype(wide)}
    assert [dtypes(each) for each in gradients] == [dtypes(each) for each in inputs]


@kinds
def test_bfloat16_products_are_within_two_percent(form: str) -> None:
    """Three significant digits an operand; sums and the carry keep float32."""
    inputs = draw(form)
    found = run_with_gradients(*inputs, compute_dtype="bfloat16")
    expected = run_with_gradients(*inputs)
    assert_near(found, expected, 0.02)
    # And it is another computation.
    assert np.any(np.asarray(found[0][1]) != np.asarray(expected[0][1]))


# Every product of a gradient ---------------------------------------------------------------------


def assert_all(jaxpr: Any, operand: str, result: str, precision: lax.Precision) -> None:
    for equation, _ in dot_products(jaxpr):
        assert {v.aval.dtype for v in equation.invars} == {jnp.dtype(operand)}, equation
        assert equation.outvars[0].aval.dtype == jnp.dtype(result), equation
        assert set(equation.params["precision"] or (lax.Precision.DEFAULT,)) == {precision}


POLICIES = {
    "bfloat16": ("bfloat16", "float32", lax.Precision.DEFAULT),
    "tf32": ("float32", "float32", lax.Precision.HIGH),
    "float32": ("float32", "float32", lax.Precision.HIGHEST),
}
policies = pytest.mark.parametrize("compute_dtype", POLICIES)


@forms
@pytest.mark.parametrize(
    ("dtype", "compute_dtype", "tokens", "backend"),
    [
        *(("float32", "bfloat16", tokens, "fast") for tokens in (False, True)),
        *(("float32", "float32", False, backend) for backend in ("fast", "reference")),
        *(("float32", each, False, "fast") for each in ("tf32", None)),
        ("bfloat16", "float32", False, "fast"),
    ],
)
def test_every_product_has_its_policy_s_operands_sums_and_precision(
    form: str, dtype: str, compute_dtype: str | None, tokens: bool, backend: str
) -> None:
    jaxpr = gradient_jaxpr(form, tokens, dtype, compute_dtype=compute_dtype, backend=backend)
    assert tokens or dot_products(jaxpr)
    assert_all(jaxpr, *POLICIES[compute_dtype or "float32"])


def language_model(batch: int = B, **options: Any) -> tuple[Any, Any, LanguageModelParams]:
    """Its loss with the gradient, all its logits, and what both are of."""
    model = LanguageModel(LanguageModelConfig(**{"hidden_size": 4, **options}), V)
    tokens, mask = jnp.zeros((T, batch), jnp.int32), jnp.ones((T, batch), bool)
    key = random.key(0) if options.get("dropout") else None

    def loss(params: Any) -> Any:
        sums, _ = model.token_sums(params, None, tokens, tokens, mask=mask, dropout_key=key)
        return sums.loss / sums.weight

    def logits(params: Any) -> Any:
        return model.apply(params, None, tokens)[1]

    return jax.value_and_grad(loss), logits, model.init(random.key(0))


@policies
@pytest.mark.parametrize("embedding_size", [None, 3])
@pytest.mark.parametrize("batch", [B, 40])
def test_every_product_of_a_language_model_follows_its_policy(
    compute_dtype: str, embedding_size: int | None, batch: int
) -> None:
    """With a batch of 40 the embedding is folded into the first layer."""
    options = {"embedding_size": embedding_size, "layers": 2, "compute_dtype": compute_dtype}
    gradient, _, params = language_model(batch, **options)
    assert_all(jax.make_jaxpr(gradient)(params), *POLICIES[compute_dtype])


# Structure ---------------------------------------------------------------------------------------

# Recurrent products of a step; reset before the product splits the GRU's into two.
RECURRENT = {"rnn": 1, "lstm": 1, "gru_after": 1, "gru_before": 2, "lstm_projected": 2}
RECURRENT |= dict.fromkeys(PLAIN_FORMS, 1) | dict.fromkeys(UNITWISE_FORMS, 0)


@forms
@pytest.mark.parametrize("tokens", [False, True])
def test_forward_has_one_product_outside_the_scan(form: str, tokens: bool) -> None:
    params, carry, xs = draw(form)
    jaxpr = jax.make_jaxpr(run)(params, carry, TOKENS if tokens else xs)
    found = [inside for _, inside in dot_products(jaxpr)]
    assert found.count(False) == (0 if tokens else 1)
    assert found.count(True) == RECURRENT[form]


@forms
@pytest.mark.parametrize("tokens", [False, True])
def test_gradient_has_one_product_a_weight_outside_the_scans(form: str, tokens: bool) -> None:
    """Of cells without a kernel the recurrent weights' is JAX's own, inside."""
    found = dot_products(gradient_jaxpr(form, tokens))
    outside = sorted(e.outvars[0].aval.shape for e, inside in found if not inside)
    inside = [e for e, inside in found if inside]
    params, _, _ = draw(form)
    gates = params.w_x.shape[1]
    plain = [(H, gates)] if form in PLAIN_FORMS else []
    split = [(H, gates)] if RECURRENT[form] and not plain else []
    split = [(H, 2 * H), (H, H)] if form == "gru_before" else split
    split += [(H, H)] if form == "lstm_projected" else []
    dense = [(T, B, gates), (T, B, D), (D, gates)]
    assert outside == sorted(split if tokens else dense + split)
    # Forward and reverse scan: the recurrent product, and its transpose.
    shapes = [equation.outvars[0].aval.shape for equation in inside]
    assert [shape for shape in shapes if shape[0] != B] == plain
    assert len(inside) == 2 * RECURRENT[form] + len(plain)


def largest_array(function: Any, params: Any) -> int:
    found = equations(jax.make_jaxpr(function)(params))
    return max(getattr(v.aval, "size", 0) for equation, _ in found for v in equation.outvars)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("embedding_size", [None, 3])
def test_neither_one_hot_inputs_nor_all_logits_ever_exist(
    cell: str, embedding_size: int | None
) -> None:
    """No array is as large as T * B * V, which either would be."""
    gradient, logits, params = language_model(5, cell=cell, embedding_size=embedding_size)
    assert largest_array(gradient, params) < T * 5 * V
    # The search would find them.
    assert largest_array(logits, params) >= T * 5 * V


# Lowering for accelerators that are not here -----------------------------------------------------

PLATFORMS = ("cpu", "tpu", "cuda")


@forms
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_layer_lowers(form: str, backend: str) -> None:
    inputs, mask = draw(form), jnp.ones((T, B), bool)
    options = {"backend": backend, "mask": mask, "resets": mask}
    lower = jax.export.export(jax.jit(partial(layer, **options)), platforms=PLATFORMS)
    assert lower(*inputs).platforms == PLATFORMS


@policies
def test_a_language_model_lowers(compute_dtype: str) -> None:
    gradient, _, params = language_model(
        layers=2, cell="gru", dropout=0.5, embedding_size=3, compute_dtype=compute_dtype
    )
    exported = jax.export.export(jax.jit(gradient), platforms=PLATFORMS)(params)
    assert exported.platforms == PLATFORMS

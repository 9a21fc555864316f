"""The recurrence in its form for GPUs, run on the CPU: the reference's values and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_near,
    assert_same_bits,
    draw_carry,
    init,
    normals_like,
    weighted,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax, random

from lstm_jax.recurrence import layer

slow = pytest.mark.slow
forms = pytest.mark.parametrize(
    "form", ["lstm", pytest.param("gru_after", marks=slow), pytest.param("rnn", marks=slow)]
)
shapes = st.tuples(st.integers(1, 13), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
shares = st.sampled_from([None, 0.3, 0.8])


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen while lowering is chosen as for a GPU."""

    def choose(*given: Any, default: Any = None, cuda: Any = None, **others: Any) -> Any:
        return (cuda or default)(*given)

    monkeypatch.setattr(lax, "platform_dependent", choose)


def flags(seed: int, share: float | None, shape: tuple[int, ...]) -> Any:
    return None if share is None else np.random.default_rng(seed).random(shape) < share


def draw(form: str, shape: tuple[int, ...], seed: int = 0, dtype: Any = jnp.float64) -> Any:
    times, batch, input_size, hidden = shape
    params = init(form, random.key(seed), input_size, hidden, dtype)
    xs = random.normal(random.key(seed + 1), (times, batch, input_size), dtype)
    return params, draw_carry(random.key(seed + 2), params, batch), xs


def gradients(inputs: Any, **options: Any) -> Any:
    """Results, and the gradients of a weighted sum of them; compiled anew at each call."""

    def loss(inputs: Any) -> Any:
        results = layer(*inputs, **options)
        return weighted(1, results), results

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)


@forms
@pytest.mark.usefixtures("as_on_a_gpu")
@settings(max_examples=4)
@given(
    shape=shapes,
    masked=shares,
    reset=shares,
    reverse=st.booleans(),
    unroll=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_reference(
    float64: None,
    form: str,
    shape: Any,
    masked: Any,
    reset: Any,
    reverse: bool,
    unroll: Any,
    seed: int,
) -> None:
    inputs = draw(form, shape, seed)
    options = {
        "mask": flags(seed, masked, shape[:2]),
        "resets": flags(seed + 1, reset, shape[:2]),
        "reverse": reverse,
    }
    found = gradients(inputs, **options, unroll=unroll)
    assert_near(found, gradients(inputs, **options, backend="reference"), 1e-10)


@slow
@forms
@pytest.mark.usefixtures("as_on_a_gpu")
def test_its_second_order_is_the_references(float64: None, form: str) -> None:
    """The gradient of a product of gradients with directions: reverse over reverse."""
    shape = (5, 2, 3, 3)
    inputs = draw(form, shape)
    directions = normals_like(random.key(7), inputs)
    options = {"mask": flags(1, 0.8, shape[:2]), "resets": flags(2, 0.2, shape[:2])}

    def along(inputs: Any, backend: str) -> Any:
        def loss(inputs: Any) -> Any:
            return weighted(1, layer(*inputs, **options, backend=backend)) ** 2

        pairs = zip(*map(jax.tree.leaves, (jax.grad(loss)(inputs), directions)), strict=True)
        return sum(jnp.vdot(g, d) for g, d in pairs)

    found, expected = (
        jax.jit(jax.grad(partial(along, backend=backend)))(inputs)
        for backend in ("scan", "reference")
    )
    assert_near(found, expected, 1e-10)


@slow
@pytest.mark.parametrize("form", ["lstm", "gru_after"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_in_bfloat16_it_is_the_reference_within_its_rounding(form: str) -> None:
    inputs = draw(form, (12, 4, 3, 8), dtype=jnp.float32)
    mask = flags(3, 0.8, (12, 4))
    # But for the weighted sum, in which most cancels.
    (_, found), dfound = gradients(inputs, mask=mask, compute_dtype="bfloat16")
    (_, expected), dexpected = gradients(inputs, mask=mask, backend="reference")
    assert_near((found, dfound), (expected, dexpected), 0.03)
    for leaf in jax.tree.leaves((found, dfound)):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("form", ["lstm", pytest.param("gru_after", marks=slow)])
def test_one_exported_program_has_both_forms(form: str) -> None:
    """Unrolled for a GPU; and on a CPU its values are those of a program for CPUs alone."""
    inputs = draw(form, (20, 2, 3, 4), dtype=jnp.float32)
    run = jax.jit(jax.grad(lambda inputs: weighted(1, layer(*inputs))))

    def products(*platforms: str) -> int:
        return (
            jax.export.export(run, platforms=platforms)(inputs).mlir_module().count("dot_general")
        )

    exported = jax.export.export(run, platforms=("cpu", "cuda"))(inputs)
    assert products("cuda") > products("cpu")
    assert products("cpu", "cuda") > products("cuda")
    assert_same_bits(exported.call(inputs), run(inputs))

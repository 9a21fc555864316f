"""The step functions against their equations in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_near,
    draw,
    forms,
    init,
    normals_like,
    run,
    run_with_gradients,
)
from core_equations import equations
from hypothesis import given
from hypothesis import strategies as st
from jax import random

from lstm_jax import cells


@forms
@given(seed=st.integers(0, 2**31 - 1))
def test_step_is_its_equation(float64: None, form: str, seed: int) -> None:
    params, carry, xs = draw(form, seed, jnp.float64)
    expected = equations(params, carry, xs[0])
    found = jax.jit(cells.cell_of(params).step)(params, carry, xs[0])
    assert_near(found, (expected, expected.h), 1e-13)


@pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])
def test_a_projection_has_a_size_of_its_own(float64: None, initialisation: Any) -> None:
    """In the step's equation, in the layer, in every initialisation."""
    params = cells.init_lstm(
        random.key(0), 3, 7, projection_size=2, initialisation=initialisation, dtype=jnp.float64
    )
    assert [a.shape for a in params] == [(3, 28), (2, 28), (28,), (7, 2)]
    zero, xs = cells.zero_carry(params, 4), random.normal(random.key(2), (5, 4, 3), jnp.float64)
    assert (zero.h.shape, zero.c.shape) == ((4, 2), (4, 7))
    carry = normals_like(1, zero)
    expected = equations(params, carry, xs[0])
    assert_near(run(params, carry, xs[:1]), (expected, expected.h[None]), 1e-13)
    found, expected = (
        run_with_gradients(params, carry, xs, backend=backend, mask=jnp.ones((5, 4), bool))
        for backend in ("scan", "reference")
    )
    assert_near(found, expected, 1e-12)


def test_zero_carry_is_zero_in_separate_buffers_of_the_accumulator() -> None:
    params = init("lstm", random.key(0), 2, 3, jnp.bfloat16)
    carry = cells.zero_carry(params, 5)
    assert isinstance(carry, cells.LSTMCarry)
    for state in carry:
        assert state.dtype == jnp.float32
        np.testing.assert_array_equal(state, np.zeros((5, 3)))
    assert carry.h.unsafe_buffer_pointer() != carry.c.unsafe_buffer_pointer()

"""The step functions against their equations in numpy; the initial distributions of weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_near,
    assert_same_bits,
    dense_forms,
    draw_carry,
    forms,
    init,
    run,
    run_with_gradients,
)
from hypothesis import given
from hypothesis import strategies as st
from jax import random

from lstm_jax import cells


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def naive_step(params: Any, carry: Any, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The docstrings' equations, gate by gate, one row at a time."""
    wide = params._make(None if p is None else np.asarray(p, np.float64) for p in params)
    of_row = dense_row if hasattr(params, "w_h") else unitwise_row
    states = zip(*map(np.asarray, carry), strict=True)
    rows = [of_row(wide, *state, x_row) for state, x_row in zip(states, x, strict=True)]
    new = [np.stack(state) for state in zip(*rows, strict=True)]
    return new, new[0]


def dense_row(params: Any, h: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
    *c, x_row = rest
    w_x, w_h, b = params[:3]
    size = w_h.shape[1] // cells.cell_of(params).gates

    def gate(index: int, h: np.ndarray) -> np.ndarray:
        part = slice(index * size, (index + 1) * size)
        return x_row @ w_x[:, part] + h @ w_h[:, part] + b[part]

    if isinstance(params, cells.RNNParams):
        return [np.tanh(gate(0, h))]
    if isinstance(params, cells.LSTMParams):
        i, f, g, o = (gate(index, h) for index in range(4))
        new_c = sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(new_c)
        return [new_h if params.w_hr is None else new_h @ params.w_hr, new_c]
    r, z = sigmoid(gate(0, h)), sigmoid(gate(1, h))
    part = slice(2 * size, 3 * size)
    if params.b_hn is None:
        n = np.tanh(gate(2, r * h))
    else:
        n = np.tanh(x_row @ w_x[:, part] + b[part] + r * (h @ w_h[:, part] + params.b_hn))
    return [(1 - z) * n + z * h]


def unitwise_row(params: Any, h: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
    *c, x_row = rest
    cell = cells.cell_of(params)
    x = np.split(x_row @ params.w_x + params.b, cell.gates)
    a = np.split(params.a, 3) if hasattr(params, "a") else []
    match cell.name:
        case "mingru":
            z = sigmoid(x[0])
            return [(1 - z) * h + z * x[1]]
        case "minlstm":
            f, i = sigmoid(x[0]), sigmoid(x[1])
            return [f / (f + i) * h + i / (f + i) * x[2]]
        case "diag-gru":
            r, z = sigmoid(a[0] * h + x[0]), sigmoid(a[1] * h + x[1])
            n = np.tanh(a[2] * (r * h) + x[2])
            return [(1 - z) * h + z * n]
    p = np.split(params.p, 2)
    f = sigmoid(a[0] * h + x[0] + p[0] * c[0])
    new_c = f * c[0] + (1 - f) * np.tanh(a[1] * h + x[1])
    o = sigmoid(a[2] * h + x[2] + p[1] * new_c)
    return [o * np.tanh(new_c), new_c]


@forms
@given(seed=st.integers(0, 2**31 - 1))
def test_step_is_its_equation(float64: None, form: str, seed: int) -> None:
    keys = random.split(random.key(seed), 3)
    params = init(form, keys[0], 3, 5, jnp.float64)
    carry = draw_carry(keys[1], params, 4)
    x = random.normal(keys[2], (4, 3), jnp.float64)
    new, y = jax.jit(cells.cell_of(params).step)(params, carry, x)
    states, output = naive_step(params, carry, np.asarray(x))
    assert_near((list(new), y), (states, output), 1e-13)


@forms
@pytest.mark.parametrize("backend", ["fast", "scan", "reference"])
def test_layer_is_the_step_in_a_python_loop(float64: None, form: str, backend: str) -> None:
    keys = random.split(random.key(0), 3)
    params = init(form, keys[0], 3, 5, jnp.float64)
    first = carry = draw_carry(keys[1], params, 2)
    xs = random.normal(keys[2], (6, 2, 3), jnp.float64)
    step = jax.jit(cells.cell_of(params).step)
    ys = []
    for x in xs:
        carry, y = step(params, carry, x)
        ys.append(y)
    assert_near(run(params, first, xs, backend=backend), (carry, jnp.stack(ys)), 1e-13)


def uniform_moments(array: Any, bound: float) -> None:
    """Inside the bound, close to it, centred, and of a uniform distribution's variance."""
    values = np.asarray(array, np.float64).ravel()
    assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    # Five standard errors of the mean and of the variance.
    error = 5 / math.sqrt(values.size)
    assert abs(values.mean()) < error * bound / math.sqrt(3)
    assert abs(values.var() / (bound**2 / 3) - 1) < error * math.sqrt(0.8)


D, H = 60, 40


@dense_forms
def test_pytorch_draws_every_weight_within_one_over_root_hidden(form: str) -> None:
    params = init(form, random.key(1), D, H)
    bound = 1 / math.sqrt(H)
    uniform_moments(params.w_x, bound)
    uniform_moments(params.w_h, bound)
    # The sum of two uniform biases: up to twice the bound, twice the variance.
    summed = params.b[: 2 * H] if form == "gru_after" else params.b
    values = np.asarray(summed)
    assert bound < np.abs(values).max() <= 2 * bound
    assert abs(values.var() / (2 * bound**2 / 3) - 1) < 5 * math.sqrt(1.5 / values.size)
    if form == "gru_after":
        # Here the two biases stay apart.
        for bias in (params.b[2 * H :], params.b_hn):
            assert 0.8 * bound < np.abs(bias).max() <= bound


def init_as(form: str, initialisation: str, dtype: Any = jnp.float32) -> Any:
    return init(form, random.key(2), D, H, dtype, initialisation=initialisation)


@dense_forms
def test_keras_draws_glorot_and_orthogonal_weights(form: str) -> None:
    params = init_as(form, "keras")
    uniform_moments(params.w_x, math.sqrt(6 / (D + params.w_x.shape[1])))
    # Rows of [H, G] with G >= H are orthonormal.
    np.testing.assert_allclose(params.w_h @ params.w_h.T, np.eye(H), atol=1e-5)
    forget = np.zeros_like(params.b)
    if form.startswith("lstm"):
        forget[H : 2 * H] = 1
    np.testing.assert_array_equal(params.b, forget)
    if form == "gru_after":
        np.testing.assert_array_equal(params.b_hn, 0)


@dense_forms
def test_tf1_draws_one_glorot_kernel_over_inputs_and_state(form: str) -> None:
    params = init_as(form, "tf1")
    kernel = np.concatenate([params.w_x, params.w_h])
    expected = np.zeros_like(params.b)
    if form.startswith("gru"):
        uniform_moments(kernel[:, : 2 * H], math.sqrt(6 / (D + H + 2 * H)))
        uniform_moments(kernel[:, 2 * H :], math.sqrt(6 / (D + H + H)))
        expected[: 2 * H] = 1
    else:
        uniform_moments(kernel, math.sqrt(6 / (D + H + kernel.shape[1])))
        if form.startswith("lstm"):
            expected[H : 2 * H] = 1
    np.testing.assert_array_equal(params.b, expected)
    if form == "gru_after":
        np.testing.assert_array_equal(params.b_hn, 0)


@forms
@pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])
def test_narrow_weights_are_float32_s_cast(form: str, initialisation: str) -> None:
    expected = init_as(form, initialisation)
    for dtype in (jnp.bfloat16, jnp.float16):
        found = init_as(form, initialisation, dtype)
        assert_same_bits(found, jax.tree.map(lambda a: a.astype(dtype), expected))  # noqa: B023
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


@forms
@pytest.mark.parametrize("initialisation", ["pytorch", "keras", "tf1"])
def test_no_two_gates_and_no_two_keys_share_weights(form: str, initialisation: str) -> None:
    params = init_as(form, initialisation)
    for weights in (params.w_x, *(getattr(params, name, params.w_x) for name in ("w_h", "a", "p"))):
        flat = np.asarray(weights).ravel()
        assert np.unique(flat).size > 0.99 * flat.size
    assert_same_bits(init_as(form, initialisation), params)
    others = [init(form, random.key(seed), D, H).w_x for seed in (3, 4)]
    assert not np.any(np.asarray(others[0]) == np.asarray(others[1]))


def test_a_projection_has_a_size_of_its_own(float64: None) -> None:
    """In the step's equation, in the layer, in every initialisation."""
    for initialisation in ("pytorch", "keras", "tf1"):
        params = cells.init_lstm(
            random.key(0), 3, 7, projection_size=2, initialisation=initialisation, dtype=jnp.float64
        )
        assert [a.shape for a in params] == [(3, 28), (2, 28), (28,), (7, 2)]
        carry = draw_carry(1, params, 4)
        assert (carry.h.shape, carry.c.shape) == ((4, 2), (4, 7))
        xs = random.normal(random.key(2), (5, 4, 3), jnp.float64)
        states, output = naive_step(params, carry, np.asarray(xs[0]))
        final, ys = run(params, carry, xs[:1])
        assert_near((list(final), ys[0]), (states, output), 1e-13)
    found, expected = (
        run_with_gradients(params, carry, xs, backend=backend, mask=jnp.ones((5, 4), bool))
        for backend in ("scan", "reference")
    )
    assert_near(found, expected, 1e-12)
    with pytest.raises(ValueError, match="projection_size is 0"):
        cells.init_lstm(random.key(0), 3, 7, projection_size=0)


def test_zero_carry_is_zero_in_separate_buffers_of_the_accumulator() -> None:
    params = init("lstm", random.key(0), 2, 3, jnp.bfloat16)
    carry = cells.zero_carry(params, 5)
    assert isinstance(carry, cells.LSTMCarry)
    for state in carry:
        assert state.dtype == jnp.float32
        np.testing.assert_array_equal(state, np.zeros((5, 3)))
    assert carry.h.unsafe_buffer_pointer() != carry.c.unsafe_buffer_pointer()

"""The step functions against their equations in numpy, and a layer against its steps."""

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
    looped,
    normals_like,
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
    cell = cells.cell_of(params)
    size = w_h.shape[1] // cell.gates
    if cell.gates_step is not None:
        return plain_row(cell.name, params, h, c, np.split(x_row @ w_x, cell.gates))

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


def normalised(gain: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """In rows, as many as there are parts."""
    a = np.concatenate(parts)
    return ((a - a.mean()) / np.sqrt(a.var() + 1e-5) * gain).reshape(len(parts), -1)


def plain_row(name: str, params: Any, h: np.ndarray, c: Any, x: list[Any]) -> list[np.ndarray]:
    """Of cells without a kernel; x are the inputs' products, gate by gate."""
    of_h, b = np.split(h @ params.w_h, len(x)), np.split(params.b, len(x))
    if name == "mgu":
        f = sigmoid(x[0] + b[0] + of_h[0])
        return [(1 - f) * np.tanh(x[1] + b[1] + f * (of_h[1] + params.b_hn)) + f * h]
    if name == "ln-lstm":
        i, f, g, o = normalised(params.g_x, *x) + normalised(params.g_h, *of_h) + b
        new_c = sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(normalised(params.g_c, new_c)[0] + params.b_c), new_c]
    assert name == "ln-gru"
    cut = 2 * len(h)
    r, z = normalised(params.g_x[:cut], *x[:2]) + normalised(params.g_h[:cut], *of_h[:2]) + b[:2]
    n, of_n = normalised(params.g_x[cut:], x[2])[0], normalised(params.g_h[cut:], of_h[2])[0]
    n = np.tanh(n + b[2] + sigmoid(r) * (of_n + params.b_hn))
    return [(1 - sigmoid(z)) * n + sigmoid(z) * h]


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
    params, carry, xs = draw(form, seed, jnp.float64)
    new, y = jax.jit(cells.cell_of(params).step)(params, carry, xs[0])
    states, output = naive_step(params, carry, np.asarray(xs[0]))
    assert_near((list(new), y), (states, output), 1e-13)


@forms
@pytest.mark.parametrize("backend", ["fast", "scan", "reference"])
def test_layer_is_the_step_in_a_python_loop(float64: None, form: str, backend: str) -> None:
    params, carry, xs = draw(form, 0, jnp.float64)
    expected = looped(cells.cell_of(params).step, params, carry, xs)
    assert_near(run(params, carry, xs, backend=backend), expected, 1e-13)


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
    states, output = naive_step(params, carry, np.asarray(xs[0]))
    final, ys = run(params, carry, xs[:1])
    assert_near((list(final), ys[0]), (states, output), 1e-13)
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

"""Laws of the cells whose units act each on its own: all times at once give what a loop gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    REVERSE,
    UNITWISE_FORMS,
    assert_message,
    assert_near,
    assert_same_bits,
    draw_carry,
    init,
    ratio,
    run,
    run_with_gradients,
)
from hypothesis import given
from hypothesis import strategies as st
from jax import Array, random

import lstm_jax
from lstm_jax import cells
from lstm_jax.recurrence import layer

B, D, H = 3, 4, 5
LINEAR = ("mingru", "minlstm")

slow = pytest.mark.slow
forms = pytest.mark.parametrize(
    "form",
    [pytest.param(f, marks=[slow] * (f != "diag-gru")) for f in UNITWISE_FORMS],
)
newton_forms = pytest.mark.parametrize("form", ["diag-gru", pytest.param("diag-lstm", marks=slow)])


def draw(form: str, times: int, dtype: Any = jnp.float32, scale: float = 1, seed: int = 0) -> Any:
    """Parameters, so many times their usual size; an initial carry; inputs."""
    keys = random.split(random.key(seed), 3)
    params = jax.tree.map(lambda a: scale * a, init(form, keys[0], D, H, dtype))
    return params, draw_carry(keys[1], params, B), random.normal(keys[2], (times, B, D), dtype)


def flags(seed: int, times: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"mask": rng.random((times, B)) < 0.7, "resets": rng.random((times, B)) < 0.2}


def with_info(params: Any, carry: Any, xs: Array, **options: Any) -> Any:
    layer = getattr(lstm_jax, cells.cell_of(params).function)
    return layer(params, carry, xs, return_info=True, **{"backend": "parallel"} | options)


# Parallel == scan == reference -------------------------------------------------------------------


@forms
@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=slow)])
@given(seed=st.integers(0, 2**31 - 1), scale=st.sampled_from([0.1, 1.0, 4.0]))
def test_at_once_is_one_after_another(
    float64: None, form: str, reverse: bool, seed: int, scale: float
) -> None:
    inputs = draw(form, 13, jnp.float64, scale, seed)
    options = {**flags(seed, 13), "reverse": reverse}
    at_once, in_a_loop, reference = (
        run_with_gradients(*inputs, **options, backend=backend)
        for backend in ("parallel", "scan", "reference")
    )
    assert_near(at_once, reference, 1e-10)
    assert_near(in_a_loop, reference, 1e-10)


@slow
@pytest.mark.parametrize("form", UNITWISE_FORMS)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("times", [1, 2, 1000])
def test_at_once_is_one_after_another_in_float32(form: str, reverse: bool, times: int) -> None:
    inputs = draw(form, times)
    options = {**flags(1, times), "reverse": reverse}
    expected = run_with_gradients(*inputs, **options, backend="reference")
    for backend in ("parallel", "scan"):
        assert_near(run_with_gradients(*inputs, **options, backend=backend), expected, 1e-5)


@slow
@pytest.mark.parametrize("form", UNITWISE_FORMS)
def test_a_hundred_thousand_times(form: str) -> None:
    inputs = draw(form, 100_000)
    for options in ({}, flags(2, 100_000)):
        at_once = run_with_gradients(*inputs, **options, backend="parallel")
        assert_near(at_once, run_with_gradients(*inputs, **options, backend="scan"), 1e-5)


@slow
@pytest.mark.parametrize("form", LINEAR)
@pytest.mark.parametrize(
    "bias", [(-200.0, -200.0), *(pytest.param((b, -b), marks=slow) for b in (200.0, -200.0))]
)
def test_gates_that_are_shut_or_open_stay_numbers(form: str, bias: tuple[float, float]) -> None:
    """Of a hundred thousand factors of 0, of 1, and of a quotient of two zeros."""
    params, carry, xs = draw(form, 100_000)
    b = params.b.at[:H].set(bias[0]).at[H : 2 * H].set(bias[1])
    gradient = jax.jit(jax.grad(lambda p: run(p, carry, xs)[1].mean()))(params._replace(b=b))
    (final, ys) = run(params._replace(b=b), carry, xs)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((gradient, final, ys)))
    if bias == (200.0, -200.0) and form == "minlstm":
        assert_near(ys, jnp.broadcast_to(carry.h, ys.shape), 1e-6)


@slow
def test_gates_at_zero_have_the_gradient_of_their_equation(float64: None) -> None:
    """Where minima and absolute values, of which the minLSTM's quotient is made, have a corner."""
    params, carry, xs = draw("minlstm", 1, jnp.float64)

    def output(b: Array) -> Array:
        return lstm_jax.minlstm_step(params._replace(b=b), carry, 0 * xs[0])[1]

    zeros, step = jnp.zeros_like(params.b), 1e-5
    found = jax.jacrev(output)(zeros)
    moves = step * jnp.eye(zeros.size)
    differences = (jax.vmap(output)(moves) - jax.vmap(output)(-moves)) / (2 * step)
    assert_near(found, jnp.moveaxis(differences, 0, -1), 1e-8)


# Newton's method ---------------------------------------------------------------------------------


@newton_forms
def test_a_few_iterations_solve_all_times(form: str) -> None:
    params, carry, xs = draw(form, 300)
    info = jax.jit(with_info)(params, carry, xs)[2]
    assert not info.sequential
    assert 2 <= int(info.iterations) <= 5
    assert float(info.residual) < 1e-6


@newton_forms
def test_what_does_not_converge_comes_from_a_loop_and_says_so(form: str) -> None:
    """One of an ensemble: the others' states are Newton's all the same."""
    members = [(p, c, 0.3 * xs) for p, c, xs in (draw(form, 400, scale=s) for s in (1, 20))]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)
    final, ys, info = jax.jit(jax.vmap(with_info))(*stacked)
    np.testing.assert_array_equal(info.sequential, [False, True])
    for index, (params, carry, xs) in enumerate(members):
        expected = run(params, carry, xs, backend="scan")
        assert_near((jax.tree.map(lambda a: a[index], final), ys[index]), expected, 1e-5)  # noqa: B023
    found = run_with_gradients(*members[1], backend="parallel")
    assert_near(found, run_with_gradients(*members[1], backend="scan"), 1e-5)


def test_infinite_and_missing_inputs_go_where_a_loop_takes_them() -> None:
    params, carry, xs = draw("diag-gru", 9)
    for poison in (np.nan, np.inf):
        poisoned = xs.at[4, 1, 0].set(poison)
        found = run(params, carry, poisoned, backend="parallel")[1]
        expected = run(params, carry, poisoned, backend="scan")[1]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert np.isnan(expected[4:, 1]).all() == np.isnan(poison)
        assert not np.isnan(expected[:, [0, 2]]).any()


@pytest.mark.parametrize("backend", ["scan", "reference", "parallel"])
def test_every_backend_says_how_it_went(backend: str) -> None:
    params, carry, xs = draw("diag-lstm", 9)
    for remat in (None, 4):
        info = jax.jit(partial(with_info, backend=backend, remat=remat))(params, carry, xs)[2]
        assert bool(info.sequential) == (backend != "parallel")
        assert (int(info.iterations) > 0) == (backend == "parallel")
        assert float(info.residual) < 1e-6


# The compiled program ----------------------------------------------------------------------------


def loops_outside_loops(program: str) -> Iterator[str]:
    """The lines of a compiled program that start a loop and are themselves in none."""
    computations = re.split(r"\n(?=\S.*\{\n)", program)
    bodies = {re.match(r"(?:ENTRY )?%?([\w.\-]+)", each)[1]: each for each in computations}  # type: ignore[index]
    (waiting,) = ([name] for name, body in bodies.items() if body.startswith("ENTRY"))
    while waiting:
        for line in bodies[waiting.pop()].splitlines():
            if " while(" in line:
                yield line
            else:
                waiting += re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[slow] * (f in ("mingru", "diag-lstm"))) for f in UNITWISE_FORMS]
)
def test_no_loop_goes_over_time(form: str) -> None:
    """Newton's iterations are one loop, and the ways out, where it or its gradient fails, two."""
    inputs = draw(form, 37)
    programs = [
        run_with_gradients.lower(*inputs, **flags(3, 37), backend=backend).compile().as_text()
        for backend in ("parallel", "scan")
    ]
    at_once, in_a_loop = (list(loops_outside_loops(program)) for program in programs)
    assert sum('"known_trip_count":{"n":"37"}' in line for line in in_a_loop) == 2
    assert not any("known_trip_count" in line for line in at_once)
    assert len(at_once) == (0 if form in LINEAR else 3)


# In a model --------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("form", UNITWISE_FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_language_model_is_the_reference_s(form: str, bidirectional: bool) -> None:
    options: dict[str, Any] = {"cell": form, "layers": 2, "hidden_size": H, "embedding_size": 3}
    tokens = random.randint(random.key(1), (12, B), 0, 7)

    def losses(backend: Any) -> Any:
        config = lstm_jax.LanguageModelConfig(
            **options, bidirectional=bidirectional, backend=backend
        )
        model = lstm_jax.LanguageModel(config, 7)
        params = model.init(random.key(0))

        def loss(params: Any) -> Any:
            return model.token_sums(params, None, tokens[:-1], tokens[1:])[0].loss

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = losses("reference")
    for backend in ("parallel", "scan", "auto"):
        assert_near(losses(backend), expected, 1e-5)


@pytest.mark.parametrize(
    "form", ["diag-lstm", *(pytest.param(f, marks=slow) for f in UNITWISE_FORMS)]
)
def test_a_model_s_steps_are_its_layers(form: str) -> None:
    options: dict[str, Any] = {"cell": form, "layers": 2, "hidden_size": H}
    config = lstm_jax.LanguageModelConfig(**options, backend="parallel")
    model = lstm_jax.LanguageModel(config, 7)
    params = model.init(random.key(0))
    tokens = random.randint(random.key(1), (6, B), 0, 7)
    final, hs = jax.jit(model.hidden)(params, None, tokens)
    carry, step = model.zero_carry(params, B), jax.jit(model.step)
    for token, expected in zip(tokens, hs, strict=True):
        carry, h = step(params, carry, token)
        assert ratio(h, expected) < 1e-6
    assert_near(carry, final, 1e-6)


def test_a_loop_s_cells_are_the_default_s_bits() -> None:
    """On a CPU at few times, where a loop is the faster."""
    params, carry, xs = draw("diag-gru", 8)
    assert_same_bits(run(params, carry, xs, backend="auto"), run(params, carry, xs, backend="scan"))


@pytest.mark.parametrize("form", UNITWISE_FORMS)
def test_other_frameworks_have_no_such_cell(form: str) -> None:
    from lstm_jax import interop

    layers = (init(form, random.key(0), D, H),)
    for convert in (
        interop.layers_to_pytorch,
        interop.layers_to_plain,
        lambda layers: interop.layer_to_keras(layers[0]),
        lambda layers: interop.params_to_linen(layers[0]),
        lambda layers: interop.params_to_nnx(layers[0]),
    ):
        assert_message(lambda: convert(layers), f"a {form}", "rnn, lstm, gru", "export")  # noqa: B023


@slow
def test_second_derivatives_where_gates_are_zero_are_those_of_the_quotient(float64: None) -> None:
    params = lstm_jax.init_minlstm(random.key(0), 3, 4, initialisation="keras", dtype=jnp.float64)
    xs = jnp.ones((5, 2, 3)).at[::2].set(0)

    def plain(b: Array) -> Array:
        f, i, n = jnp.split(xs @ params.w_x + b, 3, axis=-1)
        f, i = jax.nn.sigmoid(f), jax.nn.sigmoid(i)
        h = jnp.zeros((2, 4))
        for t in range(5):
            h = f[t] / (f + i)[t] * h + i[t] / (f + i)[t] * n[t]
        return (h**2).sum()

    wanted = jax.jit(jax.hessian(plain))(params.b)
    for backend in ("scan", "parallel", "reference"):

        def ours(b: Array, backend: str = backend) -> Array:
            ys = layer(params._replace(b=b), None, xs, backend=backend)[0].h
            return (ys**2).sum()

        assert_near(jax.jit(jax.jacrev(jax.grad(ours)))(params.b), wanted, 1e-12)


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[slow] * (f != "minlstm")) for f in UNITWISE_FORMS]
)
def test_what_is_no_number_ends_at_a_reset(form: str) -> None:
    params = init(form, random.key(0), 2, 3)
    xs = random.normal(random.key(1), (9, 2, 2)).at[2, 0].set(jnp.nan).at[3, 1].set(jnp.inf)
    resets = jnp.zeros((9, 2), bool).at[5].set(True)

    def loss(xs: Array, backend: str) -> Any:
        ys = layer(params, None, xs, resets=resets, backend=backend)[1][5:]
        return (ys**2).sum(), ys

    found, expected = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(xs, backend)
        for backend in ("parallel", "scan")
    )
    assert np.isfinite(expected[1]).all()
    assert_near((found[0][5:], found[1]), (expected[0][5:], expected[1]), 1e-5)


@slow
def test_the_gradient_after_a_reset_is_a_number_whatever_came_before() -> None:
    """Recurrent weights with which the products of a backward pass over all times overflow."""
    params = lstm_jax.init_diag_gru(random.key(0), 3, 4)
    params = params._replace(w_x=params.w_x * 0, b=params.b * 0, a=jnp.full(12, 20.0))
    xs = jnp.zeros((300, 2, 3)).at[285:].set(1)
    resets = jnp.zeros((300, 2), bool).at[280].set(True)

    def loss(params: Any, backend: str) -> Array:
        return layer(params, None, xs, resets=resets, backend=backend)[1][285:].sum()

    found, expected = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, backend)
        for backend in ("parallel", "scan")
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    assert_near(found, expected, 1e-4)


def test_parameters_of_another_size_and_unknown_options_are_refused() -> None:
    params, xs = lstm_jax.init_diag_gru(random.key(0), 3, 4), jnp.ones((2, 2, 3))
    with pytest.raises(ValueError, match=r"a has shape \(3,\); expected \(12,\)"):
        lstm_jax.diag_gru(params._replace(a=jnp.ones(3)), None, xs)
    with pytest.raises(TypeError, match=r"diag_gru has no option 'bogus'; it has mask, "):
        lstm_jax.diag_gru(params, None, xs, bogus=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="gru has no option 'input_scale'"):
        lstm_jax.gru(lstm_jax.init_gru(random.key(0), 3, 4), None, xs, input_scale=xs)
    for name in ("unroll", "remat"):
        with pytest.raises(TypeError, match=f"{name} is '2'; give a whole number"):
            lstm_jax.diag_gru(params, None, xs, **{name: "2"})

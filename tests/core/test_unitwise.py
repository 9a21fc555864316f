"""Laws of the cells whose units act each on its own: all times at once give what a loop gives."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    UNITWISE_FORMS,
    B,
    D,
    H,
    assert_message,
    assert_near,
    assert_same_bits,
    draw,
    each_form,
    flags,
    run,
    run_with_gradients,
    slow,
)
from jax import Array, random

import lstm_jax
from lstm_jax import cells
from lstm_jax.recurrence import layer

LINEAR = ("mingru", "minlstm")
forms = each_form(UNITWISE_FORMS, "diag-gru")
newton_forms = each_form(("diag-gru", "diag-lstm"), "diag-gru")


def drawn(form: str, times: int, dtype: Any = jnp.float32, scale: float = 1, seed: int = 0) -> Any:
    """Parameters, so many times their usual size; an initial carry; inputs."""
    params, *inputs = draw(form, seed, dtype, (times, B, D, H))
    return jax.tree.map(lambda a: scale * a, params), *inputs


def with_info(params: Any, carry: Any, xs: Array, **options: Any) -> Any:
    layer = getattr(lstm_jax, cells.cell_of(params).function)
    return layer(params, carry, xs, return_info=True, **{"backend": "parallel"} | options)


# Parallel == scan == reference -------------------------------------------------------------------


@each_form(UNITWISE_FORMS, beyond=["minlstm", "diag-gru"])
@pytest.mark.parametrize(
    ("times", "options"),
    [
        (1, {**flags(1, (1, B)), "reverse": True}),
        (1000, flags(1, (1000, B))),
        (100_000, flags(2, (100_000, B))),
        (100_000, {}),
    ],
)
def test_at_once_is_one_after_another_in_float32(
    form: str, times: int, options: dict[str, Any]
) -> None:
    """For up to a thousand times as the reference, which rounds where it sums more gradients."""
    inputs = drawn(form, times)
    expected = run_with_gradients(*inputs, **options, backend="scan")
    for backend in ("parallel", "reference")[: 1 + (times <= 1000)]:
        assert_near(run_with_gradients(*inputs, **options, backend=backend), expected, 1e-5)


@each_form(LINEAR)
@pytest.mark.parametrize("bias", [(-200.0, -200.0), (200.0, -200.0), (-200.0, 200.0)])
def test_gates_that_are_shut_or_open_stay_numbers(form: str, bias: tuple[float, float]) -> None:
    """Of a hundred thousand factors of 0, of 1, and of a quotient of two zeros."""
    params, carry, xs = drawn(form, 100_000)
    params = params._replace(b=params.b.at[:H].set(bias[0]).at[H : 2 * H].set(bias[1]))
    gradient = jax.jit(jax.grad(lambda p: run(p, carry, xs)[1].mean()))(params)
    final, ys = run(params, carry, xs)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((gradient, final, ys)))
    if bias == (200.0, -200.0) and form == "minlstm":
        assert_near(ys, jnp.broadcast_to(carry.h, ys.shape), 1e-6)


# Newton's method ---------------------------------------------------------------------------------


@newton_forms
def test_a_few_iterations_solve_all_times(form: str) -> None:
    params, carry, xs = drawn(form, 300)
    info = jax.jit(with_info)(params, carry, xs)[2]
    assert not info.sequential
    assert 2 <= int(info.iterations) <= 5
    assert float(info.residual) < 1e-6


def test_corrections_that_are_no_numbers_leave_it_to_the_loop() -> None:
    params = lstm_jax.init_diag_gru(random.key(0), 8, 16)
    params = params._replace(a=800 * params.a)
    xs = random.normal(random.key(1), (1000, 4, 8))
    _, ys, info = jax.jit(with_info)(params, None, xs)
    assert info.sequential
    assert_near(ys, run(params, None, xs, backend="scan")[1], 1e-5)


@newton_forms
def test_what_does_not_converge_comes_from_a_loop_and_says_so(form: str) -> None:
    """One of an ensemble: the others' states are Newton's all the same."""
    members = [(p, c, 0.3 * xs) for p, c, xs in (drawn(form, 400, scale=s) for s in (1, 20))]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *members)
    final, ys, info = jax.jit(jax.vmap(with_info))(*stacked)
    np.testing.assert_array_equal(info.sequential, [False, True])
    for index, (params, carry, xs) in enumerate(members):
        expected = run(params, carry, xs, backend="scan")
        assert_near((jax.tree.map(lambda a: a[index], final), ys[index]), expected, 1e-5)  # noqa: B023
    found = run_with_gradients(*members[1], backend="parallel")
    assert_near(found, run_with_gradients(*members[1], backend="scan"), 1e-5)


@pytest.mark.parametrize("backend", ["scan", "reference", "parallel"])
def test_every_backend_says_how_it_went(backend: str) -> None:
    params, carry, xs = drawn("diag-lstm", 9)
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


@each_form(UNITWISE_FORMS, "diag-gru")
def test_no_loop_goes_over_time(form: str) -> None:
    """Newton's iterations are one loop, and the ways out, where it or its gradient fails, two."""
    inputs = drawn(form, 37)
    programs = [
        run_with_gradients.lower(*inputs, **flags(3, (37, B)), backend=backend).compile().as_text()
        for backend in ("parallel", "scan")
    ]
    at_once, in_a_loop = (list(loops_outside_loops(program)) for program in programs)
    assert sum('"known_trip_count":{"n":"37"}' in line for line in in_a_loop) == 2
    assert not any("known_trip_count" in line for line in at_once)
    assert len(at_once) == (0 if form in LINEAR else 3)


@pytest.mark.parametrize("form", ["mingru", pytest.param("minlstm", marks=slow)])
def test_the_platform_is_chosen_while_lowering(form: str) -> None:
    """One exported program has a loop for a CPU, and none for a GPU or TPU."""
    inputs = drawn(form, 9)
    training = jax.jit(partial(run_with_gradients, backend="auto"))

    def loops(*platforms: str) -> int:
        exported = jax.export.export(training, platforms=platforms)(*inputs)
        return str(exported.mlir_module()).count("stablehlo.while")

    assert loops("cuda") == loops("tpu") == 0
    assert loops("cpu") == loops("cpu", "cuda", "tpu") == 2
    exported = jax.export.export(training, platforms=("cpu", "cuda"))(*inputs)
    assert_same_bits(exported.call(*inputs), run_with_gradients(*inputs, backend="scan"))


def test_work_grows_with_the_times_alone() -> None:
    """XLA would repeat a level of the associative scan in each one above it."""

    def work(times: int) -> float:
        params, carry, xs = drawn("diag-lstm", times)
        layer = partial(lstm_jax.diag_lstm, backend="parallel")
        compiled = jax.jit(layer).lower(params, carry, xs).compile()
        return float(compiled.cost_analysis()["flops"]) / times

    assert work(512) < 1.5 * work(32)


# Beyond what a product over all times can hold ---------------------------------------------------


@slow
@pytest.mark.parametrize("backend", ["scan", "parallel", "reference"])
def test_derivatives_where_gates_are_zero_are_those_of_the_quotient(
    float64: None, backend: Any
) -> None:
    """Where minima and absolute values, of which the minLSTM's quotient is made, have a corner."""
    params = lstm_jax.init_minlstm(random.key(0), 3, 4, initialisation="keras", dtype=jnp.float64)
    xs = jnp.ones((5, 2, 3)).at[::2].set(0)

    def plain(b: Array) -> Array:
        f, i, n = jnp.split(xs @ params.w_x + b, 3, axis=-1)
        f, i = jax.nn.sigmoid(f), jax.nn.sigmoid(i)
        h = jnp.zeros((2, 4))
        for t in range(5):
            h = f[t] / (f + i)[t] * h + i[t] / (f + i)[t] * n[t]
        return (h**2).sum()

    def ours(b: Array) -> Array:
        return (layer(params._replace(b=b), None, xs, backend=backend)[0].h ** 2).sum()

    for derivative in (jax.grad, lambda of: jax.jacrev(jax.grad(of))):
        found, expected = (jax.jit(derivative(of))(params.b) for of in (ours, plain))
        assert_near(found, expected, 1e-12)


@each_form(UNITWISE_FORMS, "minlstm", "diag-gru")
def test_what_is_no_number_goes_where_a_loop_takes_it_and_ends_at_a_reset(form: str) -> None:
    params, _, xs = draw(form, shape=(9, 3, 2, 3))
    xs = xs.at[2, 0].set(jnp.nan).at[3, 1].set(jnp.inf)
    resets = jnp.zeros((9, 3), bool).at[5].set(True)

    def loss(xs: Array, backend: str) -> Any:
        ys = layer(params, None, xs, resets=resets, backend=backend)[1]
        return (ys[5:] ** 2).sum(), ys

    found, expected = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(xs, backend)
        for backend in ("parallel", "scan")
    )
    assert np.isfinite(expected[1][5:]).all() and np.isfinite(expected[1][:, 2]).all()
    assert np.isnan(expected[1][2:5, 0]).all()
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
    assert_near((found[0][5:], found[1][5:]), (expected[0][5:], expected[1][5:]), 1e-5)


@pytest.mark.parametrize("backend", ["scan", "parallel"])
@pytest.mark.parametrize(("form", "gates"), [("mingru", (200,)), ("minlstm", (-200, 200))])
def test_a_gate_that_rounds_to_zero_is_no_reset(
    form: str, gates: tuple[float, ...], backend: str
) -> None:
    params, carry, xs = drawn(form, 6)
    bias = jnp.repeat(jnp.array(gates, jnp.float32), H)
    params = params._replace(b=params.b.at[: bias.size].set(bias))
    xs, resets = xs.at[1, 0].set(jnp.nan), jnp.zeros((6, B), bool).at[4].set(True)
    found, expected = (
        run_with_gradients(params, carry, xs, resets=resets, backend=each)
        for each in (backend, "reference")
    )
    assert np.isnan(expected[0][1][1:4, 0]).all() and np.isfinite(expected[0][1][4:]).all()
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_symbolic_length_needs_a_loop() -> None:
    params, carry, _ = drawn("mingru", 1)
    xs = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"t, {B}, {D}"), jnp.float32)
    training = jax.jit(partial(lstm_jax.mingru, backend="parallel"))
    assert_message(lambda: jax.export.export(training)(params, carry, xs), "length t", "'auto'")


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

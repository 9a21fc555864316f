"""`parallel`: a step of one's own gives what `lax.scan` gives, or is refused in words."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_message, assert_near, normals_like
from jax import Array, lax, random

import lstm_jax

T, B, H = 21, 2, 3
slow = pytest.mark.slow


class Pair(NamedTuple):
    """A carry of two arrays, each of which depends on both."""

    fast: Array
    slow: Array


def leaky(w: Array, h: Array, x: Array) -> tuple[Array, Any]:
    h = h * jax.nn.sigmoid(w - h * h) + x
    return h, {"h": h, "sum": h.sum()}


def coupled(w: dict[str, Array], carry: Pair, x: tuple[Array, Array]) -> tuple[Pair, Array]:
    at, through = x
    fast = jnp.tanh(w["in"] * at + w["slow"] * carry.slow + 0.3 * carry.fast)
    new = Pair(jnp.where(through[:, None], fast, carry.fast), 0.9 * carry.slow + 0.1 * fast)
    return new, new.fast @ w["out"]


def linear(w: Array, h: Array, x: Array) -> tuple[Array, Array]:
    h = jax.nn.sigmoid(w + x) * h + x
    return h, jnp.tanh(h)


def case(name: str, seed: int = 0, times: int = T) -> tuple[Any, Any, Any, Any]:
    xs = jnp.zeros((times, B, H))
    state = jnp.zeros((B, H))
    params, carry = {
        "leaky": (jnp.zeros(H), state),
        "linear": (jnp.zeros(H), state),
        "coupled": (
            {"in": jnp.zeros(H), "slow": jnp.zeros(H), "out": jnp.zeros((H, 2))},
            Pair(state, state),
        ),
    }[name]
    params, carry, xs = normals_like(seed, (params, carry, xs))
    if name == "coupled":
        xs = (xs, jnp.asarray(np.random.default_rng(seed).random((times, B)) < 0.7))
    return {"leaky": leaky, "linear": linear, "coupled": coupled}[name], params, carry, xs


def scanned(step: Any, params: Any, carry: Any, xs: Any, reverse: bool) -> Any:
    return lax.scan(lambda carry, x: step(params, carry, x), carry, xs, reverse=reverse)


def of_floats(run: Any, xs: Any) -> Any:
    """A scalar of parameters, carry and those inputs that have a derivative."""
    rest = xs[1:] if isinstance(xs, tuple) else ()

    def loss(params: Any, carry: Any, dense: Any) -> Any:
        results = run(params, carry, (dense, *rest) if rest else dense)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(results))

    return loss


@pytest.mark.parametrize(
    "name", ["coupled", *(pytest.param(n, marks=slow) for n in ("leaky", "linear"))]
)
@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("remat", [None, pytest.param(4, marks=slow)])
def test_it_is_lax_scan(float64: None, name: str, reverse: bool, remat: int | None) -> None:
    step, params, carry, xs = case(name)
    dense = xs[0] if isinstance(xs, tuple) else xs

    def ours(params: Any, carry: Any, xs: Any) -> Any:
        return lstm_jax.parallel(
            step, params, carry, xs, reverse=reverse, remat=remat, linear=name == "linear"
        )

    def theirs(params: Any, carry: Any, xs: Any) -> Any:
        return scanned(step, params, carry, xs, reverse)

    found, expected = (
        (
            jax.jit(run)(params, carry, xs),
            jax.jit(jax.grad(of_floats(run, xs), (0, 1, 2)))(params, carry, dense),
        )
        for run in (ours, theirs)
    )
    assert_near(found, expected, 1e-10)


@slow
@pytest.mark.parametrize("name", ["leaky", "linear", "coupled"])
def test_it_has_forward_mode_and_second_order(float64: None, name: str) -> None:
    step, params, carry, xs = case(name, times=7)
    dense = xs[0] if isinstance(xs, tuple) else xs

    def ours(params: Any, carry: Any, xs: Any) -> Any:
        return lstm_jax.parallel(step, params, carry, xs, linear=name == "linear")

    def theirs(params: Any, carry: Any, xs: Any) -> Any:
        return scanned(step, params, carry, xs, False)

    for of in (jax.jacfwd, jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        found, expected = (
            jax.jit(of(of_floats(run, xs)))(params, carry, dense) for run in (ours, theirs)
        )
        assert_near(found, expected, 1e-9)


def test_iterations_that_are_too_few_end_in_a_loop() -> None:
    step, params, carry, xs = case("leaky")
    for most, sequential in ((1, True), (12, False)):
        final, ys, info = lstm_jax.parallel(
            step, params, carry, xs, max_iterations=most, return_info=True
        )
        assert bool(info.sequential) == sequential and int(info.iterations) <= most
        assert_near((final, ys), scanned(step, params, carry, xs, False), 1e-5)


def test_a_loose_tolerance_takes_fewer_iterations() -> None:
    step, params, carry, xs = case("leaky", times=100)
    counts = [
        int(
            lstm_jax.parallel(step, params, carry, xs, tolerance=each, return_info=True)[
                2
            ].iterations
        )
        for each in (1e-1, 1e-5)
    ]
    assert counts[0] < counts[1]


def test_no_times_are_lax_scan_s() -> None:
    step, params, carry, xs = case("coupled", times=0)
    assert_near(
        lstm_jax.parallel(step, params, carry, xs), scanned(step, params, carry, xs, False), 0
    )


MATRIX = random.normal(random.key(0), (H, H))
ENTANGLED: dict[str, Any] = {
    "matrix": lambda h: jnp.tanh(h @ MATRIX),
    "mean": lambda h: h - h.mean(-1, keepdims=True),
    "rows": lambda h: h + 0.1 * h[::-1],
    "softmax": lambda h: jax.nn.softmax(h),
    "one": lambda h: h.at[1, 2].add(h[0, 0]),
    "rectified": lambda h: jax.nn.relu(jnp.roll(h, 1, -1)),
}


@pytest.mark.parametrize("how", ENTANGLED)
def test_units_that_depend_on_each_other_are_refused(how: str) -> None:
    def step(params: Any, h: Array, x: Array) -> tuple[Array, Array]:
        h = ENTANGLED[how](h) + x
        return h, h

    xs = jnp.ones((T, B, H))
    message = "units depend on each other"
    assert_message(lambda: lstm_jax.parallel(step, None, xs[0], xs), message, "lax.scan")
    assert_message(
        lambda: jax.jit(lambda xs: lstm_jax.parallel(step, None, xs[0], xs))(xs), message
    )
    lstm_jax.parallel(step, None, xs[0], xs, check=False)


def test_what_does_not_fit_is_refused_in_words() -> None:
    xs = jnp.ones((T, B, H))

    def refused(step: Any, carry: Any, xs: Any, *parts: str, **options: Any) -> None:
        assert_message(lambda: lstm_jax.parallel(step, jnp.ones(H), carry, xs, **options), *parts)

    refused(linear, xs[0], xs, "remat is 0", remat=0)
    refused(linear, xs[0], (xs, xs[1:]), "same number of times")
    refused(linear, xs[0], (), "at least one array")
    refused(linear, [[0.0]], xs, "carry is float", "jnp.asarray")
    refused(linear, jnp.zeros((B, H), int), xs, "carry", "int", "floating-point")
    refused(linear, (xs[0], xs[0, 0]), xs, "shapes", "one shape")
    refused(lambda p, h, x: h, xs[0], xs, "(carry, y)")
    refused(lambda p, h, x: (h[0], h), xs[0], xs, "float32[3]", "float32[2, 3]")
    refused(linear, (xs[0], xs[0].astype(jnp.bfloat16)), xs, "bfloat16 and float32", "one dtype")
    refused(linear, (), xs, "no arrays", "jax.vmap")
    refused(linear, xs[0], xs, "tolerance is 0", tolerance=0.0)
    refused(linear, xs[0], xs, "max_iterations is 0", max_iterations=0)
    refused(lambda p, h, x: (h, h, h), xs[0], xs, "a tuple of 3")
    closed = jax.grad(
        lambda v: lstm_jax.parallel(lambda p, h, x: (v * h, h), None, xs[0], xs)[0].sum()
    )
    assert_message(lambda: closed(jnp.ones(H)), "traced arrays", "params")
    traced = jax.jit(lambda v: lstm_jax.parallel(lambda p, h, x: (v * h, h), None, xs[0], xs))
    assert_message(lambda: traced(jnp.ones(H)), "traced arrays", "params")


def test_numbers_and_numpy_s_arrays_do_as_for_a_scan() -> None:
    """And a linear step whose factors have a product beyond all numbers."""

    def step(params: Any, h: Array, x: Any) -> tuple[Array, Array]:
        factor, x = x
        h = factor * params["w"] * h + x
        return h, h

    factors = np.where(np.arange(400) < 300, 3.0, 0.0)[:, None] * np.ones((400, 2))
    xs = (factors, np.arange(400)[:, None] == [310, 350])
    found = lstm_jax.parallel(step, {"w": 1}, np.zeros(2), xs, linear=True)
    expected = jax.lax.scan(partial(step, {"w": 1}), jnp.zeros(2), jax.tree.map(jnp.asarray, xs))
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)

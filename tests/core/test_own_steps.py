"""`parallel`: a step of one's own gives what `lax.scan` gives, or is refused in words."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_message, assert_near, cases, normals_like
from jax import Array, lax, random

import lstm_jax

T, B, H = 21, 2, 3


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


def apart(w: Array, carry: Pair, x: Array) -> tuple[Pair, Array]:
    """What is differentiated reaches one array only."""
    new = Pair(jax.nn.sigmoid(w) * carry.fast + x, 0.9 * carry.slow + 0.1 * x * x)
    return new, new.fast / (1 + new.slow**2)


CASES: dict[str, Any] = {
    "leaky": (leaky, jnp.zeros(H), jnp.zeros((B, H))),
    "linear": (linear, jnp.zeros(H), jnp.zeros((B, H))),
    "apart": (apart, jnp.zeros(H), Pair(jnp.zeros((B, H)), jnp.zeros((B, H)))),
    "coupled": (
        coupled,
        {"in": jnp.zeros(H), "slow": jnp.zeros(H), "out": jnp.zeros((H, 2))},
        Pair(jnp.zeros((B, H)), jnp.zeros((B, H))),
    ),
}


def case(name: str, times: int = T) -> tuple[Any, Any, Any, Any]:
    step, *shapes = CASES[name]
    shapes = jax.tree.map(lambda a: jnp.zeros(a.shape), (*shapes, np.zeros((times, B, H))))
    params, carry, xs = normals_like(0, shapes)  # of the precision that is set
    if name == "coupled":
        xs = (xs, jnp.asarray(np.random.default_rng(0).random((times, B)) < 0.7))
    return step, params, carry, xs


def scanned(step: Any, params: Any, carry: Any, xs: Any, reverse: bool = False) -> Any:
    return lax.scan(partial(step, params), carry, xs, reverse=reverse)


def both(name: str, times: int = T, **options: Any) -> tuple[Any, Any, Any]:
    """`parallel` and `lax.scan` as functions of parameters, carry and dense inputs; and those."""
    step, params, carry, xs = case(name, times)
    dense, *through = xs if isinstance(xs, tuple) else (xs,)

    def of(run: Any) -> Any:
        return lambda params, carry, dense: run(
            step, params, carry, (dense, *through) if through else dense
        )

    ours = partial(lstm_jax.parallel, linear=name == "linear", **options)
    theirs = partial(scanned, reverse=options.get("reverse", False))
    return of(ours), of(theirs), (params, carry, dense)


def scalar(run: Any) -> Any:
    return lambda *inputs: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(run(*inputs)))


@cases(
    "name, reverse, remat",
    [(name, False, None) for name in CASES]
    + [("coupled", True, 4), ("leaky", False, 4), ("linear", True, None)],
    ("coupled", False, None),
    ("apart", False, None),
)
def test_it_is_lax_scan(float64: None, name: str, reverse: bool, remat: int | None) -> None:
    *runs, inputs = both(name, reverse=reverse, remat=remat)
    found, expected = (
        (jax.jit(run)(*inputs), jax.jit(jax.grad(scalar(run), (0, 1, 2)))(*inputs)) for run in runs
    )
    assert_near(found, expected, 1e-10)


def twice_in_reverse(f: Any) -> Any:
    return jax.jacrev(jax.jacrev(f))


@cases(
    "name, remat",
    [(name, remat) for name in CASES for remat in (None, 2)],
    ("leaky", 2),
    beyond=["leaky", "apart"],
)
def test_it_has_second_order_and_without_chunks_forward_mode(
    float64: None, name: str, remat: int | None
) -> None:
    *runs, inputs = both(name, times=5, remat=remat)
    for of in (twice_in_reverse, *[jax.jacfwd, jax.hessian] * (remat is None)):
        found, expected = (jax.jit(of(scalar(run)))(*inputs) for run in runs)
        assert_near(found, expected, 1e-9)


def test_iterations_that_are_too_few_end_in_a_loop() -> None:
    step, params, carry, xs = case("leaky")
    for most, sequential in ((1, True), (12, False)):
        final, ys, info = lstm_jax.parallel(
            step, params, carry, xs, max_iterations=most, return_info=True
        )
        assert bool(info.sequential) == sequential and int(info.iterations) <= most
        assert_near((final, ys), scanned(step, params, carry, xs), 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1, 1e10])
def test_it_is_a_scan_at_any_scale(scale: float) -> None:
    def peak(fall: Array, h: Array, x: Array) -> tuple[Array, Array]:
        h = jnp.maximum(fall * h, x)
        return h, h

    xs = scale * random.normal(random.key(0), (300, H))
    inputs = (jnp.full(H, 0.99), jnp.zeros(H), xs)
    (_, ys, info), (_, expected) = (
        lstm_jax.parallel(peak, *inputs, return_info=True),
        scanned(peak, *inputs),
    )
    assert_near(ys / scale, expected / scale, 1e-6)
    assert not info.sequential


def test_a_loose_tolerance_takes_fewer_iterations() -> None:
    inputs = case("leaky", times=100)
    loose, tight = (
        lstm_jax.parallel(*inputs, tolerance=each, return_info=True)[2].iterations
        for each in (1e-1, 1e-5)
    )
    assert int(loose) < int(tight)


def test_no_times_are_lax_scan_s() -> None:
    inputs = case("coupled", times=0)
    assert_near(lstm_jax.parallel(*inputs), scanned(*inputs), 0)


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
    whole = partial(lstm_jax.parallel, step, None, xs[0])
    for run in (whole, jax.jit(whole)):
        assert_message(lambda: run(xs), "units depend on each other", "lax.scan")  # noqa: B023
    whole(xs, check=False)


def test_a_step_needs_no_hash() -> None:
    class Unhashable(list[None]):
        def __call__(self, w: Array, h: Array, x: Array) -> tuple[Array, Array]:
            return linear(w, h, x)  # type: ignore[no-any-return]

    xs = jnp.linspace(0, 1, T * B * H).reshape(T, B, H)
    found, wanted = (lstm_jax.parallel(f, jnp.ones(H), xs[0], xs) for f in (Unhashable(), linear))
    np.testing.assert_array_equal(found[1], wanted[1])


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
    refused(lambda p, h, x: h, xs[0], xs, "step returns an array", "(carry, y)")
    refused(None, xs[0], xs, "step is None", "function")
    refused(lambda p, h, x: (h[0], h), xs[0], xs, "float32[3]", "float32[2, 3]")
    refused(linear, (xs[0], xs[0].astype(jnp.bfloat16)), xs, "bfloat16 and float32", "one dtype")
    refused(linear, (), xs, "no arrays", "jax.vmap")
    refused(linear, xs[0], xs, "tolerance is 0", tolerance=0.0)
    refused(linear, xs[0], xs, "tolerance is np.float32(inf)", tolerance=np.float32(np.inf))
    for odd in ("1e-3", True, jnp.float32(1e-3)):
        refused(linear, xs[0], xs, f"tolerance is {odd!r}; give a Python number", tolerance=odd)
    refused(linear, xs[0], xs, "max_iterations is 0", max_iterations=0)
    refused(lambda p, h, x: (h, h, h), xs[0], xs, "a tuple of 3")

    def closed_over(v: Array) -> Array:
        return lstm_jax.parallel(lambda p, h, x: (v * h, h), None, xs[0], xs)[0].sum()

    exported = jax.export.export(jax.jit(partial(lstm_jax.parallel, linear)))
    t, b = jax.export.symbolic_shape("t, b")
    for shape, words in (((t, B, H), "symbolic length t"), ((T, b, H), "check=False")):
        like = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert_message(lambda: exported(xs[0, 0], like.update(shape=shape[1:]), like), words)  # noqa: B023
    for transform in (jax.grad, jax.jit):
        assert_message(lambda: transform(closed_over)(jnp.ones(H)), "traced arrays", "params")  # noqa: B023


@pytest.mark.slow
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

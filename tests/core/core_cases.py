"""Cells, random inputs and comparisons that the tests of the numeric core share."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, random

from lstm_jax import cells
from lstm_jax.recurrence import layer

DENSE_FORMS = ("rnn", "lstm", "gru_after", "gru_before", "lstm_projected")
UNITWISE_FORMS = tuple(cell.name for cell in cells.CELLS if cell.unit_step is not None)
PLAIN_FORMS = tuple(cell.name for cell in cells.CELLS if cell.gates_step is not None)
FORMS = DENSE_FORMS + PLAIN_FORMS + UNITWISE_FORMS
slow = pytest.mark.slow
_LIKE_ANOTHER = set(PLAIN_FORMS[1:])
"""These share all code but their equations with the first, so CI leaves out their slow cases."""


def cases(names: str, rows: Iterable[Any], *quick: Any, beyond: Iterable[str] = ()) -> Any:
    """Runs a test for each of the rows; but for the quick ones with `--slow` alone.

    Rows that name one of `beyond`, or a form like another, are beyond CI.
    """
    several, left_out = "," in names, _LIKE_ANOTHER | set(beyond)

    def marked(row: Any) -> Any:
        values = row if several else (row,)
        if row in quick:
            return pytest.param(*values)
        is_beyond = any(isinstance(each, str) and each in left_out for each in values)
        return pytest.param(*values, marks=[slow, *[pytest.mark.beyond_ci] * is_beyond])

    return pytest.mark.parametrize(names, list(map(marked, rows)))


each_form = partial(cases, "form")
forms = each_form(FORMS, "lstm", "gru_after")
LIKE_OTHERS = {*FORMS} - {"lstm", "ln-lstm", "mingru", "diag-lstm"}
each_kind = partial(cases, "form", FORMS, beyond=LIKE_OTHERS)
kinds = each_kind("lstm", "gru_after")
"""For what all layers of a kind share: with a kernel, plain, linear, and by Newton's method.

CI has one of each: the others follow, as the fast path of every form is its reference.
"""
dense_forms = each_form(DENSE_FORMS, "lstm", "gru_after")
reversals = pytest.mark.parametrize("reverse", [False, True])
OPTIONS = ("reverse", "backend", "unroll", "compute_dtype", "remat")
"""Of `layer`, those that are no arrays."""

T, B, D, H = SHAPE = (8, 3, 4, 5)


def init(
    form: str,
    key: Array,
    input_size: int,
    hidden_size: int,
    dtype: Any = jnp.float32,
    **options: Any,
) -> Any:
    """Parameters of one of the forms; every bias is drawn, none is zero."""
    name, _, kind = form.partition("_")
    if name == "gru":
        options["reset"] = kind
    if kind == "projected":
        options["projection_size"] = hidden_size  # as large, so that shapes are those of the others
    return cells.cell_named(name).init(key, input_size, hidden_size, dtype=dtype, **options)


def draw(form: str, seed: int = 0, dtype: Any = jnp.float32, shape: tuple[int, ...] = SHAPE) -> Any:
    """Parameters, an initial carry and inputs, of `T, B, D, H`; gains are not all 1."""
    times, batch, input_size, hidden = shape
    params = init(form, random.key(seed), input_size, hidden, dtype)
    moved = zip(params, normals_like(seed + 1, params), strict=True)
    params = params._make(a if a is None or np.ptp(a) else a + b / 4 for a, b in moved)
    carry = cells.zero_carry(params, batch)
    return params, *normals_like(seed, (carry, jnp.zeros((times, batch, input_size), dtype)))


def flags(seed: int = 0, shape: tuple[int, ...] = (T, B)) -> dict[str, np.ndarray]:
    """A mask with most steps real, and a few resets."""
    rng = np.random.default_rng(seed)
    return {"mask": rng.random(shape) < 0.7, "resets": rng.random(shape) < 0.2}


def normals_like(seed: int, tree: Any) -> Any:
    """Normal entries, drawn by NumPy, so that no program has to draw any."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), tree)


def weighted(seed: int, tree: Any) -> Array:
    """A scalar in which every entry of the tree has a weight of its own; no matrix product."""
    weights = normals_like(seed, tree)
    return sum(jnp.sum(w * a) for w, a in zip(*map(jax.tree.leaves, (weights, tree)), strict=True))


def with_gradients(run: Callable[[Any], Any], inputs: Any) -> tuple[Any, Any]:
    """What a function gives, and the gradients of a weighted sum of all of it."""

    def loss(inputs: Any) -> tuple[Array, Any]:
        results = run(inputs)
        return weighted(1, results), results

    (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
    return results, gradients


def second_order(loss: Callable[[Any], Array], inputs: Any, over: str = "reverse") -> Any:
    """A Hessian times a direction: reverse, or forward, over reverse."""
    gradient, directions = jax.grad(loss), normals_like(7, inputs)
    if over == "forward":
        return jax.jvp(gradient, (inputs,), (directions,))[1]

    def along(inputs: Any) -> Array:
        pairs = zip(*map(jax.tree.leaves, (gradient(inputs), directions)), strict=True)
        return sum(jnp.vdot(g, d) for g, d in pairs)

    return jax.grad(along)(inputs)


def looped(step: Callable[..., Any], params: Any, carry: Any, xs: Any) -> tuple[Any, Array]:
    """One step after another in a Python loop: the final carry, and all that came out."""
    step, ys = jax.jit(step), []
    for x in xs:
        carry, y = step(params, carry, x)
        ys.append(y)
    return carry, jnp.stack(ys)


def fast(params: Any) -> Any:
    """The backend that the laws are about: of cells that have it, the one parallel in time."""
    return "scan" if cells.cell_of(params).unit_step is None else "parallel"


def on(params: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `layer`, with the cell's fast backend where none or "fast" is named."""
    named = options.get("backend", "fast")
    return options | {"backend": fast(params) if named == "fast" else named}


@partial(jax.jit, static_argnames=OPTIONS)
def run(params: Any, carry: Any, xs: Array, **options: Any) -> tuple[Any, Array]:
    return layer(params, carry, xs, **on(params, options))


@partial(jax.jit, static_argnames=OPTIONS)
def run_with_gradients(params: Any, carry: Any, xs: Array, **options: Any) -> tuple[Any, Any]:
    """`layer` with gradients of parameters, carry, and the inputs where they are not tokens."""

    def given(inputs: tuple[Any, ...]) -> Any:
        params, carry, dense = inputs
        return layer(params, carry, xs if dense is None else dense, **on(params, options))

    dense = xs if jnp.issubdtype(xs.dtype, jnp.inexact) else None
    return with_gradients(given, (params, carry, dense))


def run_anew(inputs: Any, **options: Any) -> tuple[Any, Any]:
    """The same in a program of its own, for what is chosen while lowering."""
    return jax.jit(partial(with_gradients, lambda inputs: layer(*inputs, **options)))(inputs)


def second_order_of(inputs: Any, over: str = "reverse", **options: Any) -> Any:
    """Of the square of a weighted sum of what `layer` gives."""

    def squared(inputs: Any) -> Array:
        return weighted(1, layer(*inputs, **on(inputs[0], options))) ** 2

    return jax.jit(partial(second_order, squared, over=over))(inputs)


def as_for_cuda(*given: Any, default: Any = None, cuda: Any = None, **others: Any) -> Any:
    """What `lax.platform_dependent` would do for a CUDA GPU."""
    return (cuda or default)(*given)


def assert_message(call: Callable[[], Any], *parts: str) -> None:
    """It is refused by one line that has these parts."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def ratio(found: Any, expected: Any) -> float:
    """max |found - expected| / max |expected|; where all expected are 0, so must all found be."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    if not found.size:
        return 0.0
    difference = np.abs(found - expected).max()
    largest = np.abs(expected).max()
    return float(difference if difference == 0 else difference / max(largest, 1e-300))


def pairs(found: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees of one structure, with their names."""
    found_leaves, structure = jax.tree.flatten_with_path(found)
    expected_leaves, expected_structure = jax.tree.flatten(expected)
    assert structure == expected_structure
    for (path, leaf), reference in zip(found_leaves, expected_leaves, strict=True):
        yield jax.tree_util.keystr(path), leaf, reference


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """Every leaf within `tolerance` of its expected one, relative to that one's largest entry."""
    for name, leaf, reference in pairs(found, expected):
        off = ratio(leaf, reference)
        # Not `off > tolerance`: a NaN is never near.
        assert off <= tolerance, f"{name}: off by {off:.2e}"


def assert_same_bits(found: Any, expected: Any) -> None:
    for name, leaf, reference in pairs(found, expected):
        assert jnp.result_type(leaf) == jnp.result_type(reference), name
        np.testing.assert_array_equal(leaf, reference, err_msg=name)


def equations(jaxpr: Any, *, inside: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """All equations of a jaxpr, those of inner ones included, with the primitives around them.

    Of what is chosen by the platform, those for a CPU.
    """
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation, inside
        around = (*inside, equation.primitive.name)
        params = dict(equation.params)
        if platforms := params.get("branches_platforms"):
            at = next(n for n, names in enumerate(platforms) if names is None or "cpu" in names)
            params["branches"] = params["branches"][at]
        for value in params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from equations(inner, inside=around)


def dot_products(jaxpr: Any) -> list[tuple[Any, bool]]:
    """The matrix products in a jaxpr, and whether each is inside a scan."""
    return [
        (equation, "scan" in around)
        for equation, around in equations(jaxpr)
        if equation.primitive.name == "dot_general"
    ]

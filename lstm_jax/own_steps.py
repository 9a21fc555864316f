"""Parallel-in-time evaluation of a user's own recurrence whose units are independent.

Shapes: T time. The arrays of a carry all have one shape, whose entries are the units.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from lstm_jax.checks import require_array, require_count
from lstm_jax.kernels import solver
from lstm_jax.kernels.chunks import is_shorter
from lstm_jax.kernels.linear import previous
from lstm_jax.kernels.solver import MAX_ITERATIONS, SolverInfo
from lstm_jax.sharding import vary_as

Step = Callable[[Any, Any, Any], tuple[Any, Any]]

_CLOSED_OVER = (
    "step uses traced arrays that are not its arguments; pass them in params (in a shard_map that "
    "is not jitted every array is traced: wrap it in jax.jit)"
)
_POINTS = 2
"""Random points at which a step's units are probed; at any single one a ReLU may be flat."""


@overload
def parallel(
    step: Step,
    params: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    linear: bool = False,
    remat: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    check: bool = True,
    return_info: Literal[False] = False,
) -> tuple[Any, Any]: ...


@overload
def parallel(
    step: Step,
    params: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    linear: bool = False,
    remat: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    check: bool = True,
    return_info: Literal[True],
) -> tuple[Any, Any, SolverInfo]: ...


def parallel(
    step: Step,
    params: Any,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    linear: bool = False,
    remat: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    check: bool = True,
    return_info: bool = False,
) -> Any:
    """Compute what `lax.scan` of a step would, but for all time steps at once.

        carry_t, y_t = step(params, carry_{t-1}, x_t)

    The step must act unit by unit: each entry of the new carry may depend only on the same entry of
    the old carry. The carries of all time steps are then found by Newton's method, one associative
    scan per iteration; for a carry of S arrays, forward mode through the step gives the S x S
    Jacobian of each unit. The result is differentiable in both modes to any order; the backward
    pass of a gradient is one more associative scan. Call it under `jax.jit`: otherwise every call
    traces and compiles anew.

    Args:
        step: pure function (params, carry, x) -> (carry, y). Compute what mixes units, such as
            matrix products of the inputs, beforehand and pass it in `xs`; pass what is
            differentiated as an argument.
        params: a pytree.
        carry: initial carry, a pytree of floating-point arrays of one shape.
        xs: a pytree of arrays `[T, ...]`.
        reverse: run from the last time step to the first; `ys` stay in the order of `xs`.
        linear: the step is linear in the carry, so one scan suffices. This is not checked, but a
            large `residual` in the returned info shows that it is false.
        remat: time steps per chunk, see `lstm`; chunks are solved one by one, so this also bounds
            the memory of the iterations.
        tolerance: largest last correction. A correction is divided by the state's size or, where
            that is larger, by the unit's largest state over time, at most 1. None means the square
            root of the dtype's precision. The remaining error is about its square, if the step's
            derivative is the true one.
        max_iterations: iterations after which a `lax.scan` takes over, in the same program.
        check: refuse a step whose units depend on each other. A probe at trace time takes 2
            log2(units) forward derivatives of one step, at random values with integers set to 0.
            Units that mix only at other values go undetected and get wrong gradients.
        return_info: also return how the carries were found.

    Returns:
        The final carry, the outputs of the steps `[T, ...]`, and a `SolverInfo` if `return_info`.

    Raises:
        TypeError: the carry does not consist of floating-point arrays, or `step` is no function.
        ValueError: shapes do not match, or units depend on each other.

    References:
        Danieli et al., arXiv:2510.21450; Lim et al., arXiv:2309.12252.

    Examples:
        >>> def leaky(w, h, x):  # a unit that forgets the faster the larger it is
        ...     h = h * jax.nn.sigmoid(w - h * h) + x
        ...     return h, h
        >>> xs = jnp.linspace(0, 1, 20).reshape(10, 2)
        >>> h, ys = lstm_jax.parallel(leaky, jnp.ones(2), jnp.zeros(2), xs)
        >>> expected = jax.lax.scan(lambda h, x: leaky(jnp.ones(2), h, x), jnp.zeros(2), xs)[1]
        >>> bool(jnp.allclose(ys, expected, atol=1e-6))
        True
    """
    if not callable(step):
        raise TypeError(f"step is {step!r}; give a function")
    times = _times(xs)
    if remat is not None:
        require_count("remat", remat)
    require_count("max_iterations", max_iterations)
    if tolerance is not None:
        is_number = isinstance(tolerance, int | float | np.floating) and tolerance is not True
        if not (is_number and 0 < tolerance < math.inf):
            raise ValueError(f"tolerance is {tolerance!r}; give a Python number above 0, or None")
        tolerance = float(tolerance)
    params = jax.tree.map(_as_array, params)
    _check_carry(jax.tree.leaves(carry))
    carry, xs = jax.tree.map(jnp.asarray, (carry, xs))
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    _check_result(step, params, carry, first)
    if check:
        _check_units(step, params, carry, first)
    params, carry, xs = vary_as(xs, (params, carry, xs))
    if not times:
        found = lax.scan(partial(step, params), carry, xs)
        info = solver.by_loop(jax.tree.leaves(carry)[0].dtype)
        return (*found, info) if return_info else found
    options = solver.SolverOptions(True, linear, reverse, 1, tolerance, max_iterations)
    run = partial(_at_once, step, options, params)
    if is_shorter(remat, times):
        carry, ys, info = solver.in_chunks(run, carry, xs, remat, reverse=reverse)
    else:
        carry, ys, info = run(carry, xs)
    return (carry, ys, info) if return_info else (carry, ys)


def _at_once(
    step: Step, options: solver.SolverOptions, params: Any, carry: Any, xs: Any
) -> tuple[Any, Any, SolverInfo]:
    def carried(params: Any, carry: Any, x: Any) -> Any:
        return step(params, carry, x)[0]

    try:
        final, carries, info = solver.run(options, carried, params, carry, xs)
    except jax.errors.UnexpectedTracerError:
        raise ValueError(_CLOSED_OVER) from None
    states, structure = jax.tree.flatten(carries)
    before = previous(tuple(states), tuple(jax.tree.leaves(carry)), reverse=options.reverse)
    each = jax.vmap(step, in_axes=(None, 0, 0))
    _, ys = each(params, jax.tree.unflatten(structure, before), xs)
    return final, ys, info


def _times(xs: Any) -> int:
    leaves = jax.tree.leaves(xs)
    for leaf in leaves:
        require_array("xs", leaf)
    lengths = {leaf.shape[:1] for leaf in leaves}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"xs have shapes {[leaf.shape for leaf in leaves]}; give at least one array, and the "
            "same number of times as the first axis of each"
        )
    (times,) = lengths.pop()
    if not isinstance(times, int):
        raise ValueError(f"xs have the symbolic length {times}; use lax.scan for any length")
    return times


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, int | float | complex):
        return jnp.asarray(leaf)
    require_array("params", leaf)
    return leaf


def _check_carry(leaves: list[Any]) -> None:
    for leaf in leaves:
        require_array("carry", leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"carry has an array of {leaf.dtype}; give floating-point arrays")
    if not leaves:
        raise ValueError("carry has no arrays; with nothing to solve, use jax.vmap")
    if len(dtypes := sorted({str(leaf.dtype) for leaf in leaves})) > 1:
        raise ValueError(f"carry has arrays of {' and '.join(dtypes)}; give all of them one dtype")
    if len(shapes := sorted({leaf.shape for leaf in leaves})) > 1:
        raise ValueError(
            f"carry has arrays of shapes {shapes}; its units are the places of one shape, so give "
            "all of them that shape"
        )


def _check_result(step: Step, params: Any, carry: Any, x: Any) -> None:
    found = jax.eval_shape(step, params, carry, x)
    if not isinstance(found, tuple) or len(found) != 2:
        given = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        given = "an array" if isinstance(found, jax.ShapeDtypeStruct) else given
        raise ValueError(f"step returns {given}; it must return (carry, y)")
    new, old = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", (found[0], carry))
    if str(new) != str(old):
        raise ValueError(f"step returns a carry {new}; expected it as it was, {old}")


def _check_units(step: Step, params: Any, carry: Any, x: Any) -> None:
    """Raise ValueError if a unit's new state depends on another unit's old state."""
    if not all(isinstance(size, int) for leaf in jax.tree.leaves(carry) for size in leaf.shape):
        raise ValueError("carry has a symbolic shape, which cannot be probed; pass check=False")
    draw = np.random.default_rng(0)
    params, point, x = jax.tree.map(partial(_drawn, draw), (params, carry, x))
    more = [jax.tree.map(partial(_drawn, draw), carry) for _ in range(_POINTS - 1)]
    points = jax.tree.map(lambda *each: np.stack(each), point, *more)
    try:
        with jax.ensure_compile_time_eval():
            moved = _moved_by_others(_hashable(step), params, points, x)
        places = jax.tree.map(lambda each: np.argwhere(np.asarray(each)), moved)
    except (jax.errors.TracerArrayConversionError, jax.errors.UnexpectedTracerError):
        raise ValueError(_CLOSED_OVER) from None
    for path, found in jax.tree.leaves_with_path(places):
        if len(found):
            raise ValueError(
                f"step's units depend on each other: place {tuple(map(int, found[0]))} of the new "
                f"carry{jax.tree_util.keystr(path)} depends on another place of the old; use "
                "operations that act place by place, or lax.scan"
            )


def _hashable(step: Any) -> Any:
    """The step, or its bound method, which hashes by identity."""
    try:
        hash(step)
    except TypeError:
        return step.__call__
    return step


@partial(jax.jit, static_argnums=0)
def _moved_by_others(step: Step, params: Any, points: Any, x: Any) -> Any:
    """For each array of the carry, the entries that change with another entry.

    The indices of any two entries differ in some bit. So for each bit, perturb the entries that
    have it set, then those that have it clear, and look for changes among the others.
    """
    shape = jax.tree.leaves(points)[0].shape[1:]
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    bits = [numbers >> bit & 1 == 1 for bit in range(max(1, (numbers.size - 1).bit_length()))]
    groups = np.stack([*bits, *(~has for has in bits)])
    by = np.random.default_rng(1).uniform(0.5, 1.5, shape)

    def others_moved(point: Any, group: Array) -> Any:
        directions = jax.tree.map(lambda a: jnp.where(group, by, 0).astype(a.dtype), point)
        _, moved = jax.jvp(lambda carry: step(params, carry, x)[0], (point,), (directions,))
        return jax.tree.map(lambda a: (jnp.abs(a) > 0) & ~group, moved)

    over_groups = jax.vmap(others_moved, in_axes=(None, 0))
    found = jax.vmap(over_groups, in_axes=(0, None))(points, jnp.asarray(groups))
    return jax.tree.map(lambda each: each.any((0, 1)), found)


def _drawn(draw: np.random.Generator, array: Any) -> Any:
    """Random numbers with this shape and dtype, or zeros if the dtype is not floating-point."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return random.split(random.key(0), array.shape)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return draw.standard_normal(array.shape).astype(array.dtype)
    return np.zeros(array.shape, array.dtype)

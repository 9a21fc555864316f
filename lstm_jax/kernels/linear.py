"""Linear recurrences over time, `h_t = A_t h_{t-1} + b_t`, in parallel or in a loop.

A state is a tuple of S arrays with independent units, so A is an S x S block per
unit: `blocks[i][j]` gives the dependence of array i on array j of the previous state.

Shapes: T time, followed by any axes, the same for every array.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.kernels.carries import before_each
from lstm_jax.sharding import vary_as

State = tuple[Array, ...]
Blocks = tuple[State, ...]


def linear_recurrence(
    blocks: Blocks,
    offsets: State,
    *,
    parallel: bool | None,
    reverse: bool,
    unroll: int = 1,
    guarded: bool = False,
    cuts: Array | None = None,
) -> State:
    """Solve for the states at all time steps, from a zero state before the first.

    Differentiable in both modes to any order. The transpose is the same kind of recurrence in the
    other direction, not a transposed program.

    Args:
        blocks: A, S x S arrays `[T, ...]`.
        offsets: b, S arrays `[T, ...]`.
        parallel: one associative scan of depth log T, or else a loop; None chooses by platform.
        reverse: run from the last time step to the first.
        unroll: steps per iteration of the loop.
        guarded: fall back to a loop, in the same program, if the scan's products overflow.
        cuts: bool, of a shape that broadcasts to b's: True where nothing passes, not even NaN, from
            the state before; None cuts wherever a block is 0.

    Returns:
        h, S arrays `[T, ...]`.
    """

    def solved(blocks: Blocks, offsets: State, cuts: Array | None, reverse: bool) -> State:
        at_once = partial(_guarded if guarded else _all_at_once, reverse)
        loop = partial(_in_a_loop, reverse, unroll)
        return by_platform(parallel, at_once, loop)(blocks, offsets, cuts)

    def residual(states: State) -> State:
        from_before = _applied(blocks, previous(states, reverse=reverse), cuts)
        return _linked(tuple(map(jnp.subtract, states, from_before)))

    def solve(_: object, offsets: State) -> State:
        return solved(blocks, offsets, cuts, reverse)

    def transpose_solve(_: object, offsets: State) -> State:
        transposed = tuple(zip(*blocks, strict=True))
        after = tuple(previous(row, reverse=not reverse) for row in transposed)
        cut = None if cuts is None else before_each(cuts, reverse=not reverse)
        return solved(after, offsets, cut, not reverse)

    return lax.custom_linear_solve(residual, _linked(offsets), solve, transpose_solve)


def _linked(state: State) -> State:
    """The same arrays, each of which depends on all, as far as JAX can tell.

    JAX transposes a linear solve only if every array of its right-hand side depends on what is
    differentiated. XLA removes the selections.
    """
    never = jnp.zeros((), bool)

    def linked(index: int, array: Array) -> Array:
        for other in (*state[:index], *state[index + 1 :]):
            array = jnp.where(never, other, array)
        return array

    return tuple(map(linked, range(len(state)), state))


def by_platform(parallel: bool | None, at_once: Any, loop: Any) -> Callable[..., Any]:
    """`at_once` or `loop`; None chooses by the platform that the program is lowered for."""
    if parallel is not None:
        return at_once if parallel else loop
    return partial(lax.platform_dependent, cpu=loop, default=at_once)


def previous(states: State, first: State | None = None, *, reverse: bool) -> State:
    """The state before each time step, in processing order; `first`, or zeros, before the first."""
    firsts = (None,) * len(states) if first is None else first
    pairs = zip(states, firsts, strict=True)
    return tuple(before_each(array, each, reverse=reverse) for array, each in pairs)


def _applied(blocks: Blocks, states: State, cut: Array | None) -> State:
    return tuple(_dot(row, states, cut) for row in blocks)


def _dot(row: State, column: State, cut: Array | None) -> Array:
    """Inner product that a cut, as at a reset, makes 0 even where the column is infinite or NaN."""
    terms = [
        jnp.where(a == 0 if cut is None else cut, 0, a * h)
        for a, h in zip(row, column, strict=True)
    ]
    return sum(terms[1:], start=terms[0])


def _all_at_once(reverse: bool, blocks: Blocks, offsets: State, cuts: Array | None) -> State:
    # XLA on a CPU repeats cheap operations at each use, here level after level of the scan: with
    # S = 2 and 4,096 times, 23 times the work. It does not repeat a division, unless it knows that
    # this is by 1, or a scalar divides one array only, which becomes a multiplication.
    hidden: Any = lax.optimization_barrier
    one = lax.platform_dependent(jnp.ones((), offsets[0].dtype), cpu=hidden, default=lambda a: a)

    def following(first: Any, then: Any) -> Any:
        (blocks, offsets, cut), (blocks_then, offsets_then, cut_then) = first, then
        columns = tuple(zip(*blocks, strict=True))
        joined = tuple(tuple(_dot(row, each, cut_then) for each in columns) for row in blocks_then)
        moved = tuple(map(jnp.add, _applied(blocks_then, offsets, cut_then), offsets_then))
        joined, moved = jax.tree.map(lambda a: a / one, (joined, moved))
        return joined, moved, None if cut is None else cut | cut_then

    _, states, _ = lax.associative_scan(following, (blocks, offsets, cuts), reverse=reverse)
    return tuple(states)


def _guarded(reverse: bool, blocks: Blocks, offsets: State, cuts: Array | None) -> State:
    """Solve in parallel, or in a loop if that is not finite; see `_newton` on why a `while`."""

    def again(at: tuple[State, Array]) -> tuple[State, Array]:
        return _in_a_loop(reverse, 1, blocks, offsets, cuts), at[1] & False

    states = _all_at_once(reverse, blocks, offsets, cuts)
    failed = ~jnp.stack([jnp.isfinite(array).all() for array in states]).all()
    states, _ = lax.while_loop(lambda at: at[1], again, (states, failed))
    return states


def _in_a_loop(
    reverse: bool, unroll: int, blocks: Blocks, offsets: State, cuts: Array | None
) -> State:
    def step(state: State, inputs: Any) -> tuple[State, State]:
        blocks, offsets, cut = inputs
        state = tuple(map(jnp.add, _applied(blocks, state, cut), offsets))
        return state, state

    zeros = vary_as(offsets[0], tuple(jnp.zeros_like(b[0]) for b in offsets))
    _, states = lax.scan(step, zeros, (blocks, offsets, cuts), reverse=reverse, unroll=unroll)
    return tuple(states)

"""Linear recurrences over time, `h_t = A_t h_{t-1} + b_t`, in parallel or in a loop.

A state is a tuple of S arrays with independent units, so A is an S x S block per
unit: `blocks[i][j]` gives the dependence of array i on array j of the previous state.

Shapes: T time, followed by any axes, the same for every array.
"""

from __future__ import annotations

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

    Returns:
        h, S arrays `[T, ...]`.
    """

    def solved(blocks: Blocks, offsets: State, reverse: bool) -> State:
        at_once = partial(_guarded if guarded else _all_at_once, reverse)
        loop = partial(_in_a_loop, reverse, unroll)
        return by_platform(parallel, at_once, loop)(blocks, offsets)  # type: ignore[no-any-return]

    def residual(states: State) -> State:
        from_before = _applied(blocks, previous(states, reverse=reverse))
        return tuple(h - before for h, before in zip(states, from_before, strict=True))

    def solve(_: object, offsets: State) -> State:
        return solved(blocks, offsets, reverse)

    def transpose_solve(_: object, offsets: State) -> State:
        transposed = tuple(zip(*blocks, strict=True))
        after = tuple(previous(row, reverse=not reverse) for row in transposed)
        return solved(after, offsets, not reverse)

    found: State = lax.custom_linear_solve(residual, offsets, solve, transpose_solve)
    return found


def by_platform(parallel: bool | None, at_once: Any, loop: Any) -> Callable[..., Any]:
    """`at_once` or `loop`; None chooses by the platform that the program is lowered for."""
    if parallel is not None:
        return at_once if parallel else loop  # type: ignore[no-any-return]
    return partial(lax.platform_dependent, cpu=loop, default=at_once)


def previous(states: State, first: State | None = None, *, reverse: bool) -> State:
    """The state before each time step, in processing order; `first`, or zeros, before the first."""
    firsts = (None,) * len(states) if first is None else first
    pairs = zip(states, firsts, strict=True)
    return tuple(before_each(array, each, reverse=reverse) for array, each in pairs)


def _applied(blocks: Blocks, states: State) -> State:
    return tuple(_dot(row, states) for row in blocks)


def _dot(row: State, column: State) -> Array:
    """Inner product in which a zero block, as at a reset, blocks even infinities and NaN."""
    terms = [jnp.where(a == 0, 0, a * h) for a, h in zip(row, column, strict=True)]
    return sum(terms[1:], start=terms[0])


def _all_at_once(reverse: bool, blocks: Blocks, offsets: State) -> State:
    # XLA on a CPU repeats cheap operations at each use, here level after level of the scan: with
    # S = 2 and 4,096 times, 23 times the work. It does not repeat a division, unless it knows that
    # this is by 1, or a scalar divides one array only, which becomes a multiplication.
    hidden: Any = lax.optimization_barrier
    one = lax.platform_dependent(jnp.ones((), offsets[0].dtype), cpu=hidden, default=lambda a: a)

    def following(first: tuple[Blocks, State], then: tuple[Blocks, State]) -> tuple[Blocks, State]:
        columns = tuple(zip(*first[0], strict=True))
        joined = tuple(tuple(_dot(row, column) for column in columns) for row in then[0])
        moved = tuple(map(jnp.add, _applied(then[0], first[1]), then[1]))
        joined, moved = jax.tree.map(lambda a: a / one, (joined, moved))
        return joined, moved

    _, states = lax.associative_scan(following, (blocks, offsets), reverse=reverse)
    return tuple(states)


def _guarded(reverse: bool, blocks: Blocks, offsets: State) -> State:
    """Solve in parallel, or in a loop if that is not finite; see `_newton` on why a `while`."""

    def again(at: tuple[State, Array]) -> tuple[State, Array]:
        return _in_a_loop(reverse, 1, blocks, offsets), at[1] & False

    states = _all_at_once(reverse, blocks, offsets)
    failed = ~jnp.stack([jnp.isfinite(array).all() for array in states]).all()
    states, _ = lax.while_loop(lambda at: at[1], again, (states, failed))
    return states


def _in_a_loop(reverse: bool, unroll: int, blocks: Blocks, offsets: State) -> State:
    def step(state: State, inputs: tuple[Blocks, State]) -> tuple[State, State]:
        blocks, offsets = inputs
        state = tuple(map(jnp.add, _applied(blocks, state), offsets))
        return state, state

    zeros = vary_as(offsets[0], tuple(jnp.zeros_like(b[0]) for b in offsets))
    _, states = lax.scan(step, zeros, (blocks, offsets), reverse=reverse, unroll=unroll)
    return tuple(states)

"""Linear recurrences over time, `h_t = A_t h_{t-1} + b_t`, for all times at once or in a loop.

A state is a tuple of arrays whose units act each on its own, so A is a block of S x S for each
unit: `blocks[i][j]` says how the i-th array of a state depends on the j-th of the state before.

Shapes: T time, and whatever comes after it, of every array the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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
    """The states at all times, from a state of zeros before the first.

    Differentiable in both modes to any order. The transposed recurrence is one of its own, in the
    other direction, and no transposed program of this one.

    Args:
        blocks: A, S x S arrays `[T, ...]`.
        offsets: b, S arrays `[T, ...]`.
        parallel: by one associative scan, whose depth is log T; else by a loop over time; None
            lets the platform choose.
        reverse: from the last time to the first.
        unroll: steps per iteration of the loop.
        guarded: where the scan's products overflow, a loop gives the states, in the same program.

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
    """One of the two; for None what suits the platform that the program is lowered for."""
    if parallel is not None:
        return at_once if parallel else loop  # type: ignore[no-any-return]
    return partial(lax.platform_dependent, cpu=loop, default=at_once)


def previous(states: State, first: State | None = None, *, reverse: bool) -> State:
    """The state before each, in the order of processing: `first`, or zeros, before the first."""
    firsts = (None,) * len(states) if first is None else first
    pairs = zip(states, firsts, strict=True)
    return tuple(before_each(array, each, reverse=reverse) for array, each in pairs)


def _applied(blocks: Blocks, states: State) -> State:
    return tuple(_dot(row, states) for row in blocks)


def _dot(row: State, column: State) -> Array:
    """Where a block is 0, as at a reset, nothing comes through, be it infinite or NaN."""
    terms = [jnp.where(a == 0, 0, a * h) for a, h in zip(row, column, strict=True)]
    return sum(terms[1:], start=terms[0])


def _all_at_once(reverse: bool, blocks: Blocks, offsets: State) -> State:
    def following(first: tuple[Blocks, State], then: tuple[Blocks, State]) -> tuple[Blocks, State]:
        columns = tuple(zip(*first[0], strict=True))
        joined = tuple(tuple(_dot(row, column) for column in columns) for row in then[0])
        moved = _applied(then[0], first[1])
        return joined, tuple(map(jnp.add, moved, then[1]))

    _, states = lax.associative_scan(following, (blocks, offsets), reverse=reverse)
    return tuple(states)


def _guarded(reverse: bool, blocks: Blocks, offsets: State) -> State:
    """All at once, and where that is not finite, in a loop; see the solver for why a `while`."""

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

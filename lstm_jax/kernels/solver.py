"""Recurrences whose units act each on its own: for all times at once, or in a loop.

    h_t = F(h_{t-1}, x_t)

Where F is linear in h, one linear recurrence solves it. Else Newton's method does: of the states of
all times it takes what F makes of them and its Jacobian, S x S for each unit, and corrects them by
d, which solves a linear recurrence:

    d_t = F'(h_{t-1}) d_{t-1} + F(h_{t-1}, x_t) - h_t

The first guess is the step from a state of zeros. Iterations end with a correction that is small
enough; what it leaves is about its square. Where none of a bounded number is, or one is infinite, a
loop over time gives the states.

The gradient is that of the equation and not of the way it was solved: one linear recurrence the
other way, whose blocks are the Jacobians at the solution.

Shapes: T time, B batch, H hidden size; states are tuples of S arrays `[T, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from lstm_jax.kernels.carries import reset_rows, select_rows
from lstm_jax.kernels.linear import Blocks, State, by_platform, linear_recurrence, previous
from lstm_jax.sharding import vary_as

MAX_ITERATIONS = 12


class SolverInfo(NamedTuple):
    """How the states of all times were found.

    Attributes:
        iterations: of Newton's method, int32 `[]`; 0 where there were none: the step is linear in
            the state, or nothing but a loop was asked for.
        residual: the largest `|F(h_{t-1}, x_t) - h_t|` over all times and units, `[]`.
        sequential: whether a loop over time gave the states, bool `[]`.

    Examples:
        >>> params = lstm_jax.init_diag_gru(jax.random.key(0), 3, 4)
        >>> _, _, info = lstm_jax.diag_gru(
        ...     params, None, jnp.ones((10, 2, 3)), backend="parallel", return_info=True
        ... )
        >>> bool(info.sequential), bool(info.residual < 1e-5)
        (False, True)
    """

    iterations: Array
    residual: Array
    sequential: Array


Info = TypeVar("Info", bound=SolverInfo | None)


class How(NamedTuple):
    """How the states are found.

    Attributes:
        parallel: for all times at once; else in a loop. None lets the platform choose, while
            lowering: a loop on a CPU, where it is the faster nearly everywhere.
        linear: whether F is linear in the state.
        reverse: from the last time to the first.
        unroll: steps per iteration of a loop.
        tolerance: of the last correction, relative to a state above 1; None for the square root
            of the dtype's precision.
        max_iterations: of Newton's method.
        bounded: whether no product of Jacobians is above 1, so that none overflows.
    """

    parallel: bool | None
    linear: bool
    reverse: bool
    unroll: int = 1
    tolerance: float | None = None
    max_iterations: int = MAX_ITERATIONS
    bounded: bool = False


class _Recurrence(NamedTuple):
    """F: (operands, state, inputs of one time) -> state; and how its states are found."""

    step: Callable[[Any, State, Any], State]
    how: How


def run(
    how: How,
    step: Callable[[Any, Any, Any], Any],
    operands: Any,
    carry: Any,
    inputs: Any,
    mask_TB: Array | None = None,
    resets_TB: Array | None = None,
) -> tuple[Any, Any, SolverInfo]:
    """Runs the recurrence.

    Args:
        how: see there.
        step: (operands, carry, inputs of one time) -> carry.
        operands: what the step has at all times.
        carry: the initial carry, a pytree of arrays of one shape.
        inputs: a pytree of arrays `[T, ...]`, where T is above 0.
        mask_TB: True = a real step; None = all are.
        resets_TB: True = the carry is zeroed before this step is taken, in processing order.

    Returns:
        The final carry, the carries out of each step `[T, ...]`, and how they were found.
    """
    first, structure = jax.tree.flatten(carry)

    def held(operands: Any, state: State, inputs: tuple[Any, Any, Any]) -> State:
        inputs, mask_B, reset_B = inputs
        before = reset_rows(reset_B, jax.tree.unflatten(structure, state))
        after = select_rows(mask_B, step(operands, before, inputs), before)
        return tuple(jax.tree.leaves(after))

    recurrence = _Recurrence(held, how)
    states, info = _run(recurrence, operands, tuple(first), (inputs, mask_TB, resets_TB))
    last = tuple(array[0 if how.reverse else -1] for array in states)
    return jax.tree.unflatten(structure, last), jax.tree.unflatten(structure, states), info


def by_loop(dtype: DTypeLike) -> SolverInfo:
    """What there is to say of states that come from nothing but a loop."""
    return SolverInfo(jnp.int32(0), jnp.zeros((), dtype), jnp.array(True))


def at_each(info: Info, times: int) -> Info:
    """The same for each of so many times."""
    each: Info = jax.tree.map(lambda a: jnp.broadcast_to(a, times), info)
    return each


def worst(info: Info) -> Info:
    """Of several, the most iterations, the largest residual, and whether any was a loop."""
    most: Info = jax.tree.map(lambda a: a.max(), info)
    return most


def _run(
    recurrence: _Recurrence, operands: Any, first: State, inputs: Any
) -> tuple[State, SolverInfo]:
    given = jax.tree.map(lax.stop_gradient, (operands, first, inputs))
    states, iterations, sequential = by_platform(
        recurrence.how.parallel, partial(_at_once, recurrence), partial(_in_a_loop, recurrence)
    )(*given)
    before = previous(states, given[1], reverse=recurrence.how.reverse)
    found = _over_time(recurrence.step)(given[0], before, given[2])
    residual = _largest(tuple(jnp.abs(f - h) for f, h in zip(found, states, strict=True)))
    states = _solution(recurrence, operands, first, inputs, states)
    return states, SolverInfo(iterations, residual, sequential)


def _at_once(
    recurrence: _Recurrence, operands: Any, first: State, inputs: Any
) -> tuple[State, Array, Array]:
    if not recurrence.how.linear:
        return _newton(recurrence, operands, first, inputs)
    states = _linear(recurrence, operands, first, inputs)
    return states, *vary_as(states[0], (jnp.int32(0), jnp.array(False)))


def _in_a_loop(
    recurrence: _Recurrence, operands: Any, first: State, inputs: Any
) -> tuple[State, Array, Array]:
    states = _loop(recurrence, operands, first, inputs)
    return states, *vary_as(states[0], (jnp.int32(0), jnp.array(True)))


def _over_time(step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(step, in_axes=(None, 0, 0))


def _values_and_blocks(
    recurrence: _Recurrence, operands: Any, before: State, inputs: Any
) -> tuple[State, Blocks]:
    """F of the states before each time, and its Jacobian there, by forward mode."""
    values, push = jax.linearize(
        lambda before: _over_time(recurrence.step)(operands, before, inputs), before
    )
    zeros = tuple(map(jnp.zeros_like, before))
    columns = [
        push((*zeros[:j], jnp.ones_like(array), *zeros[j + 1 :])) for j, array in enumerate(before)
    ]
    return values, tuple(zip(*columns, strict=True))


# Values ------------------------------------------------------------------------------------------


def _loop(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> State:
    def step(state: State, inputs: Any) -> tuple[State, State]:
        state = recurrence.step(operands, state, inputs)
        return state, state

    _, states = lax.scan(
        step, first, inputs, reverse=recurrence.how.reverse, unroll=recurrence.how.unroll
    )
    return states


def _linear(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> State:
    """One correction of zeros: the offsets are F(0), but what is before the first time."""
    zeros = _zeros(first, inputs)
    before = previous(zeros, first, reverse=recurrence.how.reverse)
    values, blocks = _values_and_blocks(recurrence, operands, before, inputs)
    how = recurrence.how
    return linear_recurrence(
        blocks, values, parallel=True, reverse=how.reverse, guarded=not how.bounded
    )


def _newton(
    recurrence: _Recurrence, operands: Any, first: State, inputs: Any
) -> tuple[State, Array, Array]:
    guess: State = _over_time(recurrence.step)(operands, _zeros(first, inputs), inputs)
    precision: Any = jnp.finfo(guess[0].dtype)  # type: ignore[no-untyped-call]
    tolerance = recurrence.how.tolerance
    if tolerance is None:
        tolerance = float(precision.eps) ** 0.5

    def goes_on(at: tuple[State, Array, Array]) -> Array:
        _, correction, iterations = at
        unsettled = (correction > tolerance) & (correction < jnp.inf)  # a NaN is neither
        return unsettled & (iterations < recurrence.how.max_iterations)

    def corrected(at: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        states, _, iterations = at
        before = previous(states, first, reverse=recurrence.how.reverse)
        values, blocks = _values_and_blocks(recurrence, operands, before, inputs)
        off = tuple(f - h for f, h in zip(values, states, strict=True))
        by = linear_recurrence(blocks, off, parallel=True, reverse=recurrence.how.reverse)
        states = tuple(map(jnp.add, states, by))
        shares = tuple(
            jnp.abs(d) / jnp.maximum(jnp.abs(h), 1) for d, h in zip(by, states, strict=True)
        )
        return states, _largest(shares), iterations + 1

    most = jnp.asarray(precision.max, guess[0].dtype)
    start = (guess, *vary_as(guess[0], (most, jnp.int32(0))))
    states, correction, iterations = lax.while_loop(goes_on, corrected, start)

    def by_loop(at: tuple[State, Array]) -> tuple[State, Array]:
        return _loop(recurrence, operands, first, inputs), at[1] & False

    # A `cond` would run both ways for all members of a `vmap`; this runs once, if any needs it.
    failed = ~(correction <= tolerance)
    states, _ = lax.while_loop(lambda at: at[1], by_loop, (states, failed))
    return states, iterations, failed


def _zeros(first: State, inputs: Any) -> State:
    times = jax.tree.leaves(inputs)[0].shape[0]
    zeros = tuple(jnp.zeros((times, *a.shape), a.dtype) for a in first)
    return vary_as(first[0], zeros)  # type: ignore[no-any-return]


def _largest(arrays: State) -> Array:
    return jnp.stack([jnp.max(array, initial=0) for array in arrays]).max()


# Gradients ---------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solution(
    recurrence: _Recurrence, operands: Any, first: State, inputs: Any, states: State
) -> State:
    """The states as they are, with the derivative of the equation that they solve."""
    return states


@_solution.defjvp
def _solution_jvp(
    recurrence: _Recurrence, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[State, State]:
    operands, first, inputs, _ = primals
    states = _solution(recurrence, *primals)
    how, step = recurrence.how, _over_time(recurrence.step)
    before = previous(states, first, reverse=how.reverse)
    _, blocks = _values_and_blocks(recurrence, operands, before, inputs)
    zeros = tuple(map(jnp.zeros_like, states))
    dfirst = previous(zeros, tangents[1], reverse=how.reverse)
    _, offsets = jax.jvp(step, (operands, before, inputs), (tangents[0], dfirst, tangents[2]))
    solved = linear_recurrence(
        blocks, offsets, parallel=how.parallel, reverse=how.reverse, unroll=how.unroll,
        guarded=not how.bounded,
    )  # fmt: skip
    return states, solved

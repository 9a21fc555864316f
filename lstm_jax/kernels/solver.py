"""Recurrences with independent units, solved for all time steps at once or in a loop.

    h_t = F(h_{t-1}, x_t)

If F is linear in h, this is one linear recurrence, whose factors are computed for all time steps at
once. Otherwise Newton's method evaluates F and its Jacobian, S x S per unit, at the current states
of all time steps, and corrects these by d, which solves a linear recurrence:

    d_t = F'(h_{t-1}) d_{t-1} + F(h_{t-1}, x_t) - h_t

The initial guess is one step from a zero state. Iteration stops once the correction is small; the
remaining error is about its square. If no correction is small after the allowed number of
iterations, or one is infinite, a loop over time computes the states.

The gradient is that of the equation, not of the iterations: one linear recurrence in the other
direction, whose blocks are the Jacobians at the solution.

Shapes: T time, B batch, H hidden size; states are tuples of S arrays `[T, ...]`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from lstm_jax.kernels.carries import reset_rows, select_rows
from lstm_jax.kernels.chunks import scan_rematerialised
from lstm_jax.kernels.linear import Blocks, State, by_platform, linear_recurrence, previous
from lstm_jax.sharding import vary_as

MAX_ITERATIONS = 12


class SolverInfo(NamedTuple):
    """How the states of all time steps were found.

    Attributes:
        iterations: Newton iterations, int32 `[]`; 0 for a linear step, or if only a loop ran.
        residual: the largest `|F(h_{t-1}, x_t) - h_t|` over all time steps and units, `[]`.
        sequential: whether a loop over time computed the states instead of Newton's method, bool
            `[]`; False for a linear step.

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


class SolverOptions(NamedTuple):
    """Options of the solver.

    Attributes:
        parallel: compute all time steps at once (True) or in a loop (False). None chooses at
            lowering by platform: a loop on CPU, where it is nearly always faster.
        linear: F is linear in the state.
        reverse: run from the last time step to the first.
        unroll: steps per iteration of a loop.
        tolerance: largest last correction, see `_share`; None means the square root of the dtype's
            precision.
        max_iterations: limit on Newton iterations.
        bounded: no product of Jacobians exceeds 1, so none overflows, and a Jacobian of 0 may be
            that of a gate, so only resets cut.
    """

    parallel: bool | None
    linear: bool
    reverse: bool
    unroll: int = 1
    tolerance: float | None = None
    max_iterations: int = MAX_ITERATIONS
    bounded: bool = False


_Found = tuple[State, Array, Array]
"""States, number of iterations, whether a loop ran; floats all, which have derivatives of 0."""


class _Recurrence(NamedTuple):
    """F: (operands, state, inputs of one time step) -> state; and the solver's options."""

    step: Callable[[Any, State, Any], State]
    options: SolverOptions


def run(
    options: SolverOptions,
    step: Callable[[Any, Any, Any], Any],
    operands: Any,
    carry: Any,
    inputs: Any,
    mask_TB: Array | None = None,
    resets_TB: Array | None = None,
) -> tuple[Any, Any, SolverInfo]:
    """Run `step`: (operands, carry, inputs of one time step) -> carry, over `inputs [T, ...]`.

    The carry is a pytree of arrays of one shape, `operands` are the same at all time steps, and
    resets are in processing order. Returns the final carry, the carry after each step, and a
    `SolverInfo`.
    """
    first, structure = jax.tree.flatten(carry)

    def held(operands: Any, state: State, inputs: tuple[Any, Any, Any]) -> State:
        inputs, mask_B, reset_B = inputs
        before = reset_rows(reset_B, jax.tree.unflatten(structure, state))
        after = select_rows(mask_B, step(operands, before, inputs), before)
        return tuple(jax.tree.leaves(after))

    given = (operands, tuple(first), (inputs, mask_TB, resets_TB))
    states, iterations, sequential = _solution(_Recurrence(held, options), *given)
    (operands, at_first, each), at = jax.tree.map(lax.stop_gradient, (given, states))
    values = _over_time(held)(operands, previous(at, at_first, reverse=options.reverse), each)
    residual = _largest(tuple(jnp.abs(f - h) for f, h in zip(values, at, strict=True)))
    info = SolverInfo(iterations.astype(jnp.int32), residual, sequential > 0)
    last = tuple(array[0 if options.reverse else -1] for array in states)
    return jax.tree.unflatten(structure, last), jax.tree.unflatten(structure, states), info


def by_loop(dtype: DTypeLike) -> SolverInfo:
    """Info for states that a loop alone computed."""
    return SolverInfo(jnp.int32(0), jnp.zeros((), dtype), jnp.array(True))


def in_chunks(
    run: Callable[[Any, Any], tuple[Any, Any, Any]],
    carry: Any,
    inputs: Any,
    chunk: int,
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """`run`: (carry, inputs) -> (carry, outputs, info), over chunks that are recomputed backward.

    The info is the worst of all: most iterations, largest residual, and whether any took a loop.
    """

    def body(carry: Any, inputs: Any, index: Array) -> tuple[Any, Any]:
        times = jax.tree.leaves(inputs)[0].shape[0]
        carry, outputs, info = run(carry, inputs)
        return carry, (outputs, jax.tree.map(lambda a: jnp.broadcast_to(a, times), info))

    carry, (outputs, infos) = scan_rematerialised(body, carry, inputs, chunk, reverse=reverse)
    return carry, outputs, jax.tree.map(lambda a: a.max(), infos)


def _over_time(step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(step, in_axes=(None, 0, 0))


def _values_and_blocks(
    recurrence: _Recurrence, operands: Any, before: State, inputs: Any
) -> tuple[State, Blocks]:
    """F at the state before each time step, and its Jacobian there, by forward mode."""
    values, push = jax.linearize(
        lambda before: _over_time(recurrence.step)(operands, before, inputs), before
    )
    zeros = tuple(map(jnp.zeros_like, before))
    columns = [
        push((*zeros[:j], jnp.ones_like(array), *zeros[j + 1 :])) for j, array in enumerate(before)
    ]
    return values, tuple(zip(*columns, strict=True))


# Values ------------------------------------------------------------------------------------------


def _loop(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> _Found:
    def step(state: State, inputs: Any) -> tuple[State, State]:
        state = recurrence.step(operands, state, inputs)
        return state, state

    _, states = lax.scan(
        step, first, inputs, reverse=recurrence.options.reverse, unroll=recurrence.options.unroll
    )
    return states, *vary_as(states[0], (jnp.float32(0), jnp.float32(1)))


def _linear(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> _Found:
    """Solve the linear recurrence with F(0) as the offsets, and `first` before the first step."""
    zeros, options = _zeros(first, inputs), recurrence.options
    before = previous(zeros, first, reverse=options.reverse)
    values, blocks = _values_and_blocks(recurrence, operands, before, inputs)
    states = _solved(options, inputs, blocks, values)
    return states, *vary_as(states[0], (jnp.float32(0), jnp.float32(0)))


def _solved(
    options: SolverOptions, inputs: tuple[Any, Any, Array | None], blocks: Blocks, b: State
) -> State:
    """Solve a linear recurrence as `options` says."""
    cuts = None
    if options.bounded:
        resets = jnp.zeros(b[0].shape[:1], bool) if inputs[2] is None else inputs[2]
        cuts = vary_as(b, jnp.expand_dims(resets, tuple(range(resets.ndim, b[0].ndim))))
    return linear_recurrence(
        blocks, b, parallel=options.parallel, reverse=options.reverse, unroll=options.unroll,
        guarded=not options.bounded, cuts=cuts,
    )  # fmt: skip


def _newton(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> _Found:
    guess: State = _over_time(recurrence.step)(operands, _zeros(first, inputs), inputs)
    precision: Any = jnp.finfo(guess[0].dtype)  # type: ignore[no-untyped-call]
    tolerance = recurrence.options.tolerance
    if tolerance is None:
        tolerance = float(precision.eps) ** 0.5

    def goes_on(at: tuple[State, Array, Array]) -> Array:
        _, correction, iterations = at
        unsettled = (correction > tolerance) & (correction < jnp.inf)  # both are false for a NaN
        return unsettled & (iterations < recurrence.options.max_iterations)

    def corrected(at: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
        states, _, iterations = at
        before = previous(states, first, reverse=recurrence.options.reverse)
        values, blocks = _values_and_blocks(recurrence, operands, before, inputs)
        off = tuple(f - h for f, h in zip(values, states, strict=True))
        by = linear_recurrence(blocks, off, parallel=True, reverse=recurrence.options.reverse)
        # Without NaNs, which `jax_debug_nans` would report although a loop takes over.
        states = tuple(
            jnp.where(jnp.isfinite(d), h + d, h) for d, h in zip(by, states, strict=True)
        )
        shares = tuple(map(_share, by, states))
        return states, _largest(shares), iterations + 1

    most = jnp.asarray(precision.max, guess[0].dtype)
    start = (guess, *vary_as(guess[0], (most, jnp.float32(0))))
    states, correction, iterations = lax.while_loop(goes_on, corrected, start)

    def by_loop(at: tuple[State, Array]) -> tuple[State, Array]:
        return _loop(recurrence, operands, first, inputs)[0], at[1] & False

    # Under `vmap` a `cond` would run both branches for all; this runs once, if any needs it.
    failed = ~(correction <= tolerance)
    states, _ = lax.while_loop(lambda at: at[1], by_loop, (states, failed))
    return states, iterations, failed.astype(jnp.float32)


def _share(by: Array, states: Array) -> Array:
    """Corrections divided by the state's size, or by its unit's largest, at most 1, if larger."""
    sizes = jnp.abs(states)
    sizes = jnp.maximum(sizes, jnp.minimum(sizes.max(0, keepdims=True, initial=0), 1))
    return jnp.where(by == 0, 0, jnp.abs(by) / sizes)


def _zeros(first: State, inputs: Any) -> State:
    times = jax.tree.leaves(inputs)[0].shape[0]
    zeros = tuple(jnp.zeros((times, *a.shape), a.dtype) for a in first)
    return vary_as(first[0], zeros)


def _largest(arrays: State) -> Array:
    """The largest entry; infinite if any is NaN, which XLA's maximum may pass over on a CPU."""
    numbers = [jnp.where(jnp.isnan(array), jnp.inf, array) for array in arrays]
    return jnp.stack([jnp.max(array, initial=0) for array in numbers]).max()


# Gradients ---------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solution(recurrence: _Recurrence, operands: Any, first: State, inputs: Any) -> _Found:
    """Find the states, with the derivative of the equation that they solve."""
    at_once = recurrence._replace(options=recurrence.options._replace(parallel=True))
    newton, loop = partial(_kept_newton, at_once), partial(_loop, recurrence)
    by_iteration = by_platform(recurrence.options.parallel, newton, loop)
    find = partial(_linear, recurrence) if recurrence.options.linear else by_iteration
    return find(operands, first, inputs)


@_solution.defjvp
def _solution_jvp(
    recurrence: _Recurrence, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[_Found, Any]:
    operands, first, inputs = primals
    states, iterations, sequential = _solution(recurrence, *primals)
    options, step = recurrence.options, _over_time(recurrence.step)
    before = previous(states, first, reverse=options.reverse)
    _, blocks = _values_and_blocks(recurrence, operands, before, inputs)
    zeros = tuple(map(jnp.zeros_like, states))
    dfirst = previous(zeros, tangents[1], reverse=options.reverse)
    _, offsets = jax.jvp(step, (operands, before, inputs), (tangents[0], dfirst, tangents[2]))
    nothing = vary_as(states[0], jnp.zeros_like(iterations))
    dstates = _solved(options, inputs, blocks, offsets)
    return (states, iterations, sequential), (dstates, nothing, nothing)


# Before 0.12, jax drops the rule above inside a scan whose gradient is differentiated again, and
# would differentiate the iterations, which have no reverse mode. It keeps the rule below, but takes
# other arrays for residuals that are its inputs, hence the barrier.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kept_newton(recurrence: _Recurrence, *given: Any) -> _Found:
    return _newton(recurrence, *given)


def _kept_newton_forward(recurrence: _Recurrence, *given: Any) -> tuple[_Found, Any]:
    return _solution(recurrence, *given), lax.optimization_barrier(given)


def _kept_newton_backward(recurrence: _Recurrence, given: Any, cotangents: Any) -> Any:
    _, pull = jax.vjp(lambda *given: _solution(recurrence, *given)[0], *given)
    return pull(cotangents[0])


_kept_newton.defvjp(_kept_newton_forward, _kept_newton_backward)

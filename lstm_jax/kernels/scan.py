"""The fast recurrence: a scan over precomputed input products, with a custom backward pass.

The products `gates_x = xs w_x` are formed for all time steps beforehand. The forward scan
overwrites each row of them with what the backward pass needs; the backward scan overwrites the same
rows with the gates' gradients, from which one product per weight, contracted over time and batch
together, forms its gradient. So one buffer `[T, B, G]` passes through both scans. As scan outputs,
these arrays would first be filled with zeros and take memory of their own.

Shapes: T time, B batch, H hidden size, G size of all gates together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.kernels import gpu
from lstm_jax.kernels.carries import before_each, reset_rows, select_rows
from lstm_jax.precision import Products

Weights = tuple[Array, ...]
Factors = tuple[Array, ...]


class Row(NamedTuple):
    """The gates of one time step: a row `[B, G]` of the buffer that a scan carries.

    Values are written, then read back from the row. This order lets XLA write in place: if anything
    were computed from the old row after a write, XLA would copy the whole buffer. A value read back
    goes through a tanh before it has several uses, because XLA keeps the result of a tanh but
    repeats anything cheaper at each use.

    Attributes:
        buffer: `[T, B, G]`.
        time: index of the row.
    """

    buffer: Array
    time: Array

    def read(self) -> Array:
        """The current row, `[B, G]`."""
        row_BG: Array = lax.dynamic_index_in_dim(self.buffer, self.time, keepdims=False)
        return row_BG

    def write(self, *blocks: Array, start: int = 0) -> Row:
        """Write blocks `[B, ...]` side by side from column `start` on.

        Concatenating them first would cost XLA a branch per number.
        """
        buffer = self.buffer
        for block in blocks:
            starts = (self.time, *(jnp.array(at, self.time.dtype) for at in (0, start)))
            buffer = lax.dynamic_update_slice(buffer, block[None], starts)
            start += block.shape[-1]
        return Row(buffer, self.time)


class Kernel(NamedTuple):
    """One cell's arithmetic, split into what runs inside the loops and what runs outside.

    Attributes:
        fold: parameters -> parameters with the sigmoids' halves folded into the weights.
        weights: folded parameters -> weights of the recurrence itself.
        forward: (policy, weights, b `[G]`, carry, row of gates_x) -> (carry, saved row, others).
        factors: (saved rows `[T, B, G]`, other saved values `[T, ...]`, previous hidden states
            `[T, B, H]`) -> inputs of the backward step, for all time steps.
        backward: (policy, transposed weights, saved row, factors, gradient of the new carry) ->
            (gradient of the previous carry, row of the gates' gradients, other outputs).
        gather: (policy, factors, previous hidden states, gradients `[T, B, G]`, other outputs of
            `backward`) -> (gradient of gates_x `[T, B, G]`, gradients of the weights).
        on_gpu: GPU form that replaces `forward`, `factors` and `backward` and saves arrays of the
            same shapes; None if GPUs use those too.
        is_fused: whether CUDA GPUs run that form as one kernel, see `mosaic`.
    """

    fold: Callable[[Any], Any]
    weights: Callable[[Any], Weights]
    forward: Callable[..., tuple[Any, Row, Any]]
    factors: Callable[..., Any]
    backward: Callable[..., tuple[Any, Row, Any]]
    gather: Callable[..., tuple[Array, Weights]]
    on_gpu: gpu.Elementwise | None = None
    is_fused: bool = False


class _Scaled(NamedTuple):
    """Products of a hidden state that is scaled before each, and their gradients.

    Every product of a cell whose hidden state may be scaled is one of that state with weights.
    """

    policy: Products
    scale_BH: Array
    backward: bool

    def dot(self, left_BK: Array, w: Array) -> Array:
        if self.backward:
            return self.policy.dot(left_BK, w) * self.scale_BH
        return self.policy.dot(left_BK * self.scale_BH, w)

    def weight_gradient(self, h_TBH: Array, dgates_TBG: Array) -> Array:
        return self.policy.weight_gradient(h_TBH * self.scale_BH[None], dgates_TBG)


def _scaling(policy: Products, scale_BH: Array | None, *, backward: bool) -> Any:
    if scale_BH is None:
        return policy
    return _Scaled(policy, scale_BH.astype(policy.accumulate), backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def run(
    kernel: Kernel, policy: Products, reverse: bool, unroll: int | None, *inputs: Any
) -> tuple[Any, Array]:
    """Run the recurrence; reverse mode only.

    Args:
        kernel: the cell's arithmetic, from `kernel_of`.
        policy: dtypes of the recurrent product.
        reverse: run from the last time step to the first.
        unroll: steps per iteration of the loop; None chooses by platform.
        *inputs: `kernel.weights(kernel.fold(params))`; the bias `[G]` of the folded parameters, or
            None if the gates include it; the initial carry and the input part of the gates
            `[T, B, G]`, with folded parameters, both in the accumulator's dtype; mask `[T, B]`,
            True = a real step, or None; resets `[T, B]` in processing order, True = zero the carry
            before this step, or None; and the scale `[B, H]` of the hidden state before each
            product, with which GPUs run the form for CPUs, or None.

    Returns:
        The final carry, and the hidden state after each step `[T, B, H]`.
    """
    return _run_forward(kernel, policy, reverse, unroll, *inputs)[0]


def _run_forward(
    kernel: Kernel, policy: Products, reverse: bool, unroll: int | None, *inputs: Any
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    *inputs, scale_BH = inputs  # type: ignore[assignment]
    in_place = partial(_forward, kernel, policy, reverse, unroll or 1, scale_BH)
    forms = [partial(module.forward, policy, reverse, unroll) for module in _on_gpus(kernel)]
    form = kernel.on_gpu if scale_BH is None else None
    results, saved_TBG, extra = _by_platform(form, in_place, forms, inputs)
    weights, b_G, carry, _, mask_TB, resets_TB = inputs
    residuals = (weights, b_G, carry.h, results[1], saved_TBG, extra, mask_TB, resets_TB, scale_BH)
    return results, residuals


def _run_backward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int | None,
    residuals: tuple[Any, ...],
    cotangents: tuple[Any, Array],
) -> tuple[Weights, Array | None, Any, Array, None, None, None]:
    weights, b_G, h_BH, hs_TBH, saved_TBG, extra, mask_TB, resets_TB, scale_BH = residuals
    # Without the barrier XLA fuses the shift into the transposition for the weight gradient, with a
    # branch per number, which is slower than doing one after the other.
    before_TBH = lax.optimization_barrier(before_each(hs_TBH, h_BH, reverse=reverse))
    previous_TBH = reset_rows(resets_TB, before_TBH)
    in_place = partial(_backward, kernel, policy, reverse, unroll or 1, scale_BH)
    given = (kernel.gather, policy, reverse, unroll)
    forms = [partial(module.backward, *given) for module in _on_gpus(kernel)]
    inputs = (weights, b_G, saved_TBG, extra, previous_TBH, mask_TB, resets_TB, *cotangents)
    form = kernel.on_gpu if scale_BH is None else None
    dcarry, (dgates_TBG, dweights) = _by_platform(form, in_place, forms, inputs)
    dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
    db_G = None if b_G is None else dgates_TBG.sum((0, 1)).astype(b_G.dtype)
    return dweights, db_G, dcarry, dgates_TBG, None, None, None


run.defvjp(_run_forward, _run_backward)


def _on_gpus(kernel: Kernel) -> Sequence[Any]:
    """Modules with the form for CUDA and, where it is another, for ROCm."""
    if not kernel.is_fused:
        return (gpu,)
    from lstm_jax.kernels import mosaic  # imports Pallas

    return mosaic, gpu


def _by_platform(
    form: gpu.Elementwise | None, in_place: Any, on_gpus: Sequence[Any], inputs: Sequence[Any]
) -> Any:
    """Choose the form at lowering, so that a multi-platform export holds the right one for each.

    One object for both kinds of GPUs is traced once.
    """
    if form is None:
        return in_place(*inputs)
    forms = [partial(on_gpu, form) for on_gpu in on_gpus]
    return lax.platform_dependent(*inputs, cuda=forms[0], rocm=forms[-1], default=in_place)


def _forward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    scale_BH: Array | None,
    weights: Weights,
    b_G: Array | None,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[tuple[Any, Array], Array, Any]:
    operands = tuple(policy.cast(w) if w.ndim == 2 else w for w in weights)
    policy = _scaling(policy, scale_BH, backward=False)
    bias_G = jnp.zeros_like(gates_TBG, shape=gates_TBG.shape[-1:]) if b_G is None else b_G

    def step(
        state: tuple[Any, Array], inputs: tuple[Array, Array | None, Array | None]
    ) -> tuple[tuple[Any, Array], Any]:
        carry, buffer_TBG = state
        time, mask_B, reset_B = inputs
        previous = reset_rows(reset_B, carry)
        row = Row(buffer_TBG, time)
        new, row, extra = kernel.forward(policy, operands, bias_G, previous, row)
        carry = select_rows(mask_B, new, previous)
        return (carry, row.buffer), (carry.h, extra)

    inputs = (jnp.arange(gates_TBG.shape[0]), mask_TB, resets_TB)
    (final, saved_TBG), (hs_TBH, extra) = lax.scan(
        step, (carry, gates_TBG), inputs, reverse=reverse, unroll=unroll
    )
    return (final, hs_TBH), saved_TBG, extra


def _backward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    scale_BH: Array | None,
    weights: Weights,
    b_G: Array | None,
    saved_TBG: Array,
    extra: Any,
    previous_TBH: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
    dcarry: Any,
    dhs_TBH: Array,
) -> tuple[Any, tuple[Array, Weights]]:
    operands = tuple(policy.transposed(w) if w.ndim == 2 else w for w in weights)
    policy = _scaling(policy, scale_BH, backward=True)
    factors = kernel.factors(saved_TBG, extra, previous_TBH)

    def step(state: tuple[Any, Array], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Array], Any]:
        dcarry, buffer_TBG = state
        time, dh_BH, factors, mask_B, reset_B = inputs
        dcarry = dcarry._replace(h=dcarry.h + dh_BH)
        zeros = jax.tree.map(jnp.zeros_like, dcarry)
        dnew = select_rows(mask_B, dcarry, zeros)
        row = Row(buffer_TBG, time)
        dprevious, row, emitted = kernel.backward(policy, operands, row, factors, dnew)
        if mask_B is not None:
            held = select_rows(mask_B, zeros, dcarry)
            dprevious = jax.tree.map(jnp.add, dprevious, held)
        return (reset_rows(reset_B, dprevious), row.buffer), emitted

    times = jnp.arange(saved_TBG.shape[0])
    inputs = (times, dhs_TBH, factors, mask_TB, resets_TB)
    (dcarry, drows_TBG), emitted = lax.scan(
        step, (dcarry, saved_TBG), inputs, reverse=not reverse, unroll=unroll
    )
    return dcarry, kernel.gather(policy, factors, previous_TBH, drows_TBG, emitted)

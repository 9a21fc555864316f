"""The fast recurrence: a scan over hoisted input products, with a backward pass of its own.

The forward scan sees only `gates_x = xs w_x`, formed before it for all times at once, and writes
over each time's row of it what the backward pass needs. The backward scan writes the gates'
gradients over the same rows, and one product after it forms each weight gradient, contracted over
time and batch together. So one buffer `[T, B, G]` goes through both scans. As outputs of the scans,
these arrays would be filled with zeros first, and take a place of their own.

Shapes: T time, B batch, H hidden size, G gates side by side.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """The gates of one time, a row `[B, G]` of the buffer that a scan carries.

    What is written is read back from the row. That order is what lets XLA write in place: whatever
    it might compute from the row of before, after a write, would make it copy the whole buffer.
    And what is read back goes through a tanh before it has several uses: XLA reads the row once
    for a tanh, whose result it keeps, but again for each use of anything cheaper.

    Attributes:
        buffer: `[T, B, G]`.
        time: which row.
    """

    buffer: Array
    time: Array

    def read(self) -> Array:
        """The row as it is now, `[B, G]`."""
        row_BG: Array = lax.dynamic_index_in_dim(self.buffer, self.time, keepdims=False)
        return row_BG

    def write(self, *blocks: Array, start: int = 0) -> Row:
        """The row with the blocks `[B, ...]` side by side from column `start` on.

        Concatenated first, they would cost XLA a branch for each number.
        """
        buffer = self.buffer
        for block in blocks:
            starts = (self.time, *(jnp.array(at, self.time.dtype) for at in (0, start)))
            buffer = lax.dynamic_update_slice(buffer, block[None], starts)
            start += block.shape[-1]
        return Row(buffer, self.time)


class Kernel(NamedTuple):
    """One cell's arithmetic, split into what runs inside the loops and what runs outside them.

    Attributes:
        fold: parameters -> the same with the sigmoids' halves folded into the weights.
        weights: folded parameters -> what the recurrence itself needs of them.
        forward: (policy, weights, b `[G]`, carry, row of gates_x) -> (carry, row of what to keep,
            what else to keep).
        factors: (rows kept `[T, B, G]`, what else `[T, ...]`, previous hidden states `[T, B, H]`)
            -> what the backward step needs, for all times.
        backward: (policy, transposed weights, row kept, factors, gradient of the new carry) ->
            (gradient of the previous carry, row of the gates' gradients, what else to emit).
        gather: (policy, factors, previous hidden states, gradients `[T, B, G]`, what else was
            emitted) -> (gradient of gates_x `[T, B, G]`, gradients of the weights).
        on_gpu: what the form for GPUs computes instead of `forward`, `factors` and `backward`; it
            keeps arrays of the same shapes. None where a GPU runs those, too.
    """

    fold: Callable[[Any], Any]
    weights: Callable[[Any], Weights]
    forward: Callable[..., tuple[Any, Row, Any]]
    factors: Callable[..., Any]
    backward: Callable[..., tuple[Any, Row, Any]]
    gather: Callable[..., tuple[Array, Weights]]
    on_gpu: gpu.Elementwise | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def run(
    kernel: Kernel, policy: Products, reverse: bool, unroll: int | None, *inputs: Any
) -> tuple[Any, Array]:
    """Runs the recurrence; reverse mode only.

    Args:
        kernel: the cell's arithmetic, from `kernel_of`.
        policy: dtypes of the recurrent product.
        reverse: run from the last time to the first.
        unroll: steps per iteration of the loop; None lets the platform choose.
        *inputs: `kernel.weights(kernel.fold(params))`; bias `[G]` of the folded parameters, or None
            where the gates have it; initial carry, in the accumulator's dtype; the input's share of
            the gates `[T, B, G]`, of the folded parameters, in that dtype; the mask `[T, B]`, True
            = a real step, or None; and the resets, True = the carry is zeroed before this step is
            taken, in processing order, or None.

    Returns:
        The final carry, and the hidden state carried out of each step `[T, B, H]`.
    """
    return _run_forward(kernel, policy, reverse, unroll, *inputs)[0]


def _run_forward(
    kernel: Kernel, policy: Products, reverse: bool, unroll: int | None, *inputs: Any
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    in_place = partial(_forward, kernel, policy, reverse, unroll or 1)
    on_gpu = partial(gpu.forward, policy, reverse, unroll)
    results, saved_TBG, extra = _by_platform(kernel, in_place, on_gpu, inputs)
    weights, b_G, carry, _, mask_TB, resets_TB = inputs
    residuals = (weights, b_G, carry.h, results[1], saved_TBG, extra, mask_TB, resets_TB)
    return results, residuals


def _run_backward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int | None,
    residuals: tuple[Any, ...],
    cotangents: tuple[Any, Array],
) -> tuple[Weights, Array | None, Any, Array, None, None]:
    weights, b_G, h_BH, hs_TBH, saved_TBG, extra, mask_TB, resets_TB = residuals
    # Without the barrier XLA joins them inside the transposition for the weight gradient's product,
    # with a branch for each number, slower than both one after the other.
    before_TBH = lax.optimization_barrier(before_each(hs_TBH, h_BH, reverse=reverse))
    previous_TBH = reset_rows(resets_TB, before_TBH)
    in_place = partial(_backward, kernel, policy, reverse, unroll or 1)
    on_gpu = partial(gpu.backward, kernel.gather, policy, reverse, unroll)
    inputs = (weights, b_G, saved_TBG, extra, previous_TBH, mask_TB, resets_TB, *cotangents)
    dcarry, (dgates_TBG, dweights) = _by_platform(kernel, in_place, on_gpu, inputs)
    dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
    db_G = None if b_G is None else dgates_TBG.sum((0, 1)).astype(b_G.dtype)
    return dweights, db_G, dcarry, dgates_TBG, None, None


run.defvjp(_run_forward, _run_backward)


def _by_platform(kernel: Kernel, in_place: Any, on_gpu: Any, inputs: tuple[Any, ...]) -> Any:
    """Chooses the form while lowering, so that a program exported for several has each its own."""
    if kernel.on_gpu is None:
        return in_place(*inputs)
    on_gpu = partial(on_gpu, kernel.on_gpu)
    return lax.platform_dependent(*inputs, cuda=on_gpu, rocm=on_gpu, default=in_place)


def _forward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    weights: Weights,
    b_G: Array | None,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[tuple[Any, Array], Array, Any]:
    operands = tuple(policy.cast(w) if w.ndim == 2 else w for w in weights)

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

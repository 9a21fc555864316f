"""The declaration of a kernel, which is one cell's arithmetic over time, and what it runs on.

Shapes: T time, B batch, H hidden size, G size of all gates together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.precision import Products

Weights = tuple[Array, ...]
Factors = tuple[Array, ...]
Blocks = tuple[Array, ...]
Results = tuple[Any, Array]
"""The final carry, and the hidden state after each step `[T, B, H]`; or their gradients."""


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
        return lax.dynamic_index_in_dim(self.buffer, self.time, keepdims=False)

    def write(self, *blocks: Array, start: int = 0) -> "Row":
        """Write blocks `[B, ...]` side by side from column `start` on.

        Concatenating them first would cost XLA a branch per number.
        """
        buffer = self.buffer
        for block in blocks:
            starts = (self.time, *(jnp.array(at, self.time.dtype) for at in (0, start)))
            buffer = lax.dynamic_update_slice(buffer, block[None], starts)
            start += block.shape[-1]
        return Row(buffer, self.time)


class Elementwise(NamedTuple):
    """The elementwise part of a cell, between the recurrent product and the next carry.

    Attributes:
        reads: fields of the carry that it reads, apart from the product.
        others: number of operands that the product does not enter, at most one.
        operands: (blocks `[B, H]` of the input part and bias, blocks of the recurrent product,
            biases `[1, H]` of the product) -> operands of the cell, those that the product enters
            first.
        cell: (operands, carry, and optionally a tanh other than JAX's) -> carry.
        keep: (operands, carry) -> (row for the backward pass, or None to use the input part, other
            saved values).
        prepare: (saved rows, other saved values, bias, previous hidden states) -> inputs of
            `backward`; computes everything expensive for all time steps at once.
        backward: (output of `prepare`, gradient of the new carry, function marking values to
            materialise rather than recompute) -> (gradients of the operands, gradients of `reads`).
    """

    reads: tuple[str, ...]
    others: int
    operands: Callable[[Blocks, Blocks, Blocks], Blocks]
    cell: Callable[..., Any]
    keep: Callable[[Blocks, Any], tuple[Array | None, Any]]
    prepare: Callable[..., Any]
    backward: Callable[[Any, Any, Callable[[Array], Array]], tuple[Blocks, Blocks]]


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
        in_place: whether `forward` writes its rows even if nothing is differentiated: otherwise
            XLA on CPU fuses a GRU's step into one loop, which takes twice as long.
    """

    fold: Callable[[Any], Any]
    weights: Callable[[Any], Weights]
    forward: Callable[..., tuple[Any, Row, Any]]
    factors: Callable[..., Any]
    backward: Callable[..., tuple[Any, Row, Any]]
    gather: Callable[..., tuple[Array, Weights]]
    on_gpu: Elementwise | None = None
    is_fused: bool = False
    in_place: bool = False


class How(NamedTuple):
    """How a recurrence runs.

    Attributes:
        kernel: the cell's arithmetic, from `kernel_of`.
        policy: dtypes of the recurrent product.
        reverse: run from the last time step to the first.
        unroll: steps per iteration of the loop; None chooses by platform.
    """

    kernel: Kernel
    policy: Products
    reverse: bool
    unroll: int | None


class Given(NamedTuple):
    """What a recurrence runs on.

    Attributes:
        weights: `kernel.weights(kernel.fold(params))`.
        b_G: the bias of the folded parameters, or None if the gates include it.
        carry: the initial carry, in the accumulator's dtype; None in the backward pass.
        rows_TBG: the input part of the gates, with folded parameters, in the accumulator's dtype;
            in the backward pass the rows that the forward pass saved.
        mask_TB: True = a real step; None = all are real.
        resets_TB: in processing order, True = zero the carry before this step; or None.
    """

    weights: Weights
    b_G: Array | None
    carry: Any
    rows_TBG: Array
    mask_TB: Array | None
    resets_TB: Array | None


def blocks_of(joined: Array, parts: int) -> Blocks:
    """Split the last axis into blocks, by slices, which Mosaic GPU supports."""
    size = joined.shape[-1] // parts
    return tuple(joined[..., n * size : (n + 1) * size] for n in range(parts))

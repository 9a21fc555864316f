"""The plain recurrence: the step function under `lax.scan`, differentiated by JAX itself."""

from __future__ import annotations

from typing import Any

from jax import Array, lax

from lstm_jax.cells import Cell, Params
from lstm_jax.kernels.carries import reset_rows, select_rows
from lstm_jax.precision import ComputeDtype


def run(
    cell: Cell,
    params: Params,
    carry: Any,
    xs_TBD: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
    *,
    reverse: bool,
    unroll: int,
    compute_dtype: ComputeDtype | None,
) -> tuple[Any, Array]:
    """Apply the step function at each time step in turn.

    Resets are in processing order: True at t zeroes the carry before step t. Returns the final
    carry, and the hidden state after each step `[T, B, H]`.
    """

    def step(carry: Any, inputs: tuple[Array, Array | None, Array | None]) -> tuple[Any, Array]:
        x_BD, mask_B, reset_B = inputs
        carry = reset_rows(reset_B, carry)
        new, _ = cell.step(params, carry, x_BD, compute_dtype=compute_dtype)
        carry = select_rows(mask_B, new, carry)
        return carry, carry.h

    return lax.scan(step, carry, (xs_TBD, mask_TB, resets_TB), reverse=reverse, unroll=unroll)

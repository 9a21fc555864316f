"""The plain recurrence: a step under `lax.scan`, differentiated by JAX itself."""

from collections.abc import Callable
from typing import Any

from jax import Array, lax

from lstm_jax.kernels.carries import reset_rows, select_rows


def run(
    step: Callable[[Any, Any], Any],
    carry: Any,
    inputs: Any,
    mask_TB: Array | None,
    resets_TB: Array | None,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, Array]:
    """Apply a step, (carry, inputs of a time step) -> carry, at each time step in turn.

    Resets are in processing order: True at t zeroes the carry before step t. Returns the final
    carry, and the hidden state after each step `[T, B, H]`.
    """

    def body(carry: Any, at: tuple[Any, Array | None, Array | None]) -> tuple[Any, Array]:
        x, mask_B, reset_B = at
        carry = reset_rows(reset_B, carry)
        carry = select_rows(mask_B, step(carry, x), carry)
        return carry, carry.h

    return lax.scan(body, carry, (inputs, mask_TB, resets_TB), reverse=reverse, unroll=unroll)

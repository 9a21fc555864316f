"""Row-wise selection between carries for masks and resets, and shifts by one time step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def select_rows(mask: Array | None, chosen: Any, otherwise: Any) -> Any:
    """`chosen` where the mask `[..., B]` is True, else `otherwise`; no mask means `chosen`.

    It selects rather than multiplies, so the rejected values may be infinite or NaN.
    """
    if mask is None:
        return chosen
    return jax.tree.map(lambda a, b: jnp.where(mask[..., None], a, b), chosen, otherwise)


def held(share: Any, before: Any, after: Any) -> Any:
    """A mix of two carries: `share before + (1 - share) after`."""

    def between(share: Array, before: Array, after: Array) -> Array:
        share = share.astype(after.dtype)
        return share * before + (1 - share) * after

    return jax.tree.map(between, share, before, after)


def reset_rows(resets: Array | None, carry: Any) -> Any:
    """Zeros where `resets [..., B]` is True, else the carry."""
    if resets is None:
        return carry
    return jax.tree.map(lambda a: jnp.where(resets[..., None], jnp.zeros_like(a), a), carry)


def before_each(array: Array, first: Array | None = None, *, reverse: bool) -> Array:
    """Shift an array `[T, ...]` by one time step in processing order.

    The first entry becomes `first`, or zeros.
    """
    first = jnp.zeros_like(array[:1]) if first is None else first[None]
    return jnp.concatenate([array[1:], first] if reverse else [first, array[:-1]])


def cuts_backward(resets: Array) -> tuple[Array, Array]:
    """Convert resets `[T, B]` for processing backward: where to zero before a step, and at the end.

    A reset at t cuts between t-1 and t. Backward, t-1 follows t, so the carry is zeroed before t-1
    is processed; the cut at t = 0 comes after the last step.
    """
    return before_each(resets, reverse=True), resets[0]

"""Row-wise choices between carries, as masks and resets ask for them, and shifts by one time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def select_rows(mask: Array | None, chosen: Any, otherwise: Any) -> Any:
    """`chosen` where the mask `[..., B]` is True, `otherwise` elsewhere; all of it without one.

    A choice and not a product, so that what is not chosen may be infinite or NaN.
    """
    if mask is None:
        return chosen
    return jax.tree.map(lambda a, b: jnp.where(mask[..., None], a, b), chosen, otherwise)


def reset_rows(resets: Array | None, carry: Any) -> Any:
    """Zeros where `resets` `[..., B]` is True, the carry elsewhere."""
    if resets is None:
        return carry
    return jax.tree.map(lambda a: jnp.where(resets[..., None], jnp.zeros_like(a), a), carry)


def before_each(array: Array, first: Array | None = None, *, reverse: bool) -> Array:
    """Of an array `[T, ...]` the entry before each time, as they are processed.

    Before the first comes `first`, or zeros.
    """
    first = jnp.zeros_like(array[:1]) if first is None else first[None]
    return jnp.concatenate([array[1:], first] if reverse else [first, array[:-1]])


def cuts_backward(resets: Array) -> tuple[Array, Array]:
    """Of resets `[T, B]`, where a carry is zeroed that goes back in time: before steps, at the end.

    A reset at t cuts between t-1 and t. Backward, t-1 comes after t, so the carry is zeroed before
    t-1 is processed; the cut at t = 0 comes after the last step.
    """
    return before_each(resets, reverse=True), resets[0]

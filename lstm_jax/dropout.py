"""Dropout masks, drawn from one key or from one key per sequence of the batch.

With one typed key per sequence, `[B]`, the masks do not depend on how the batch is split, and so
not on the number of devices.

Shapes: B batch, F features; leading axes are times.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import ArrayLike, DTypeLike


def fold(key: Array, number: ArrayLike) -> Array:
    """`jax.random.fold_in`, applied to a key or to each of the keys `[B]`."""
    folded = random.fold_in if not key.ndim else jax.vmap(random.fold_in, (0, None))
    return folded(key, number)


def keys_of_rows(key: Array, first: ArrayLike, rows: int) -> Array:
    """Typed keys `[rows]` of consecutive rows of a batch, beginning with row number `first`."""
    return jax.vmap(random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Inverted dropout mask: 0 with probability `rate`, else the inverse of the keep probability.

    Each random 32-bit word serves several entries: 32 at a rate of 1/2, 16 at multiples of 1/4, 8
    at multiples of 1/16, 4 at multiples of 1/256, and otherwise 2, with the rate rounded to
    1/65536. One word per entry took a tenth of a training step on CPU.

    `key` is one typed key, or keys `[B]` for a shape `(..., B, F)`.
    """
    bits = next((n for n in (1, 2, 4, 8) if (rate * 2**n).is_integer()), 16)
    levels, per_word = 1 << bits, 32 // bits
    dropped = min(round(rate * levels), levels - 1)
    words = _words(key, (*shape[:-1], -(-shape[-1] // per_word)))
    shifts = jnp.arange(per_word, dtype=jnp.uint32) * bits
    draws = (words[..., None] >> lax.broadcast_to_rank(shifts, len(shape) + 1)) & (levels - 1)
    draws = draws.reshape(*shape[:-1], words.shape[-1] * per_word)[..., : shape[-1]]
    return jnp.where(draws >= dropped, levels / (levels - dropped), 0).astype(dtype)


def _words(key: Array, shape: tuple[int, ...]) -> Array:
    if not key.ndim:
        return random.bits(key, shape, jnp.uint32)
    *times, _, words = shape
    of_one = (*times, words)
    return jax.vmap(lambda key: random.bits(key, of_one, jnp.uint32), out_axes=len(times))(key)

"""Random masks, drawn by one key, or by one for each sequence of a batch.

By keys of their own (typed, `[B]`) sequences are treated the same wherever the batch is cut, so
results do not depend on how many devices share it.

Shapes: B batch, F features; leading axes are times.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import ArrayLike, DTypeLike


def fold(key: Array, number: ArrayLike) -> Array:
    """Another key for each number, as `jax.random.fold_in`; of keys `[B]`, one for each."""
    folded = random.fold_in if not key.ndim else jax.vmap(random.fold_in, (0, None))
    return folded(key, number)


def keys_of_rows(key: Array, first: ArrayLike, rows: int) -> Array:
    """A key for each row of a batch, from the number of the first on: typed keys `[rows]`."""
    return jax.vmap(random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Inverted dropout: 0 with probability `rate`, else the inverse of the share that is kept.

    One random 32-bit word serves as many entries as it can: 32 at a rate of 1/2, 16 at multiples of
    1/4, 8 at those of 1/16, 4 at those of 1/256, else 2, and the rate is then rounded to a multiple
    of 1/65536. On CPU drawing a word an entry took a tenth of a step.

    The key is a typed one, or keys `[B]` for a shape `(..., B, F)`.
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

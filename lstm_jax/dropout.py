"""Dropout masks, drawn from one key or from one key per sequence of the batch.

With one typed key per sequence, `[B]`, the masks do not depend on how the batch is split, and so
not on the number of devices.

Shapes: B batch, F features; leading axes are times.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import ArrayLike, DTypeLike

from lstm_jax.checks import require_key

Tree = TypeVar("Tree")


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
    bits = next((n for n in (1, 2, 4, 8) if float(rate * 2**n).is_integer()), 16)
    levels, per_word = 1 << bits, 32 // bits
    dropped = min(round(rate * levels), levels - 1)
    words = _words(key, (*shape[:-1], -(-shape[-1] // per_word)))
    shifts = jnp.arange(per_word, dtype=jnp.uint32) * bits
    draws = (words[..., None] >> lax.broadcast_to_rank(shifts, len(shape) + 1)) & (levels - 1)
    draws = draws.reshape(*shape[:-1], words.shape[-1] * per_word)[..., : shape[-1]]
    return jnp.where(draws >= dropped, levels / (levels - dropped), 0).astype(dtype)


def weight_drop(key: Array, params: Tree, rate: float) -> Tree:
    """DropConnect on recurrent matrices: the parameters for one training step.

        w_h' = m * w_h / (1 - rate),    m_ij = 0 with probability `rate`, else 1

    for each `w_h` in the tree, drawn once per step for all times and sequences, so the recurrence
    itself is as fast as without (Merity et al., 2018, arXiv:1708.02182). Gradients of dropped
    weights are zero. `rate` is rounded as by `dropout_mask`.

    Args:
        key: a typed key, the same on all devices.
        params: parameters of a layer, a stack or a model.
        rate: share to drop, 0 <= rate < 1.

    Raises:
        ValueError: there is no `w_h` to drop from, several keys, or a rate outside [0, 1).
        TypeError: `key` is no typed key.

    Examples:
        >>> params = lstm_jax.init_gru(jax.random.key(0), input_size=3, hidden_size=64)
        >>> dropped = lstm_jax.weight_drop(jax.random.key(1), params, rate=0.5)
        >>> round(float(jnp.mean(dropped.w_h == 0)), 1), bool(jnp.all(dropped.w_x == params.w_x))
        (0.5, True)
    """
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"rate is {rate!r}; give the share to drop, 0 <= rate < 1")
    require_key("key", key)
    leaves, treedef = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path[-1:], simple=True) for path, _ in leaves]
    if "w_h" not in names:
        raise ValueError(
            "weight_drop found no w_h among the parameters; choose a cell with a recurrent matrix, "
            "such as 'lstm' or 'gru', or leave it at 0"
        )
    found = [
        leaf * dropout_mask(random.fold_in(key, place), rate, leaf.shape, leaf.dtype)
        if name == "w_h"
        else leaf
        for place, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))
    ]
    return jax.tree.unflatten(treedef, found)


def dropout_masks(
    key: Array, rate: float, times: Array, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    """A `dropout_mask` `[T, *shape]` for each of the times, by its number alone."""
    keys = jax.vmap(fold, (None, 0))(key, times)
    return jax.vmap(lambda key: dropout_mask(key, rate, shape, dtype))(keys)


def _words(key: Array, shape: tuple[int, ...]) -> Array:
    if not key.ndim:
        return random.bits(key, shape, jnp.uint32)
    *times, _, words = shape
    of_one = (*times, words)
    return jax.vmap(lambda key: random.bits(key, of_one, jnp.uint32), out_axes=len(times))(key)

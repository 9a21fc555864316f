"""Filters on logits that decide which tokens may be drawn, and the draw itself.

Shapes: V vocabulary; leading axes are independent rows.

The n-th largest logit and the edge of a nucleus are found by bisection over the 2^32 values of
float32 instead of a sort, which takes about twenty times as long for 8,009 logits on CPU. If few
tokens may be drawn, `lax.top_k` lists them and the rest works on the list. On a CPU it takes as
long as the output layer, so it looks only at the parts of V that may have one of them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

_BLOCK = 128
_LISTS = (8, 64)
_PART, _FEW = 32, 1 << 15  # of so few logits in all `lax.top_k` is as fast
_LARGEST_VOCABULARY = 1 << 24


class Filters(NamedTuple):
    """How tokens are chosen. All values are traced, so changing one does not recompile.

    The filters apply in this order, each to what the previous ones have left: forbidden tokens,
    repetition penalty, temperature, top-n, top-p, min-p. `FilterOptions` explains the values; here
    `forbidden` is bool `[V]`, True = never chosen.

    Examples:
        >>> filters = lstm_jax.sampling.make_filters(5, temperature=0.5, forbidden=[0])
        >>> filters.forbidden.tolist()
        [True, False, False, False, False]
    """

    temperature: Array
    top_n: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    forbidden: Array


class FilterOptions(TypedDict, total=False):
    """Arguments of `make_filters`, all optional.

    Attributes:
        temperature: at least 0, default 1; 0 takes the most likely token (the first, if tied).
        top_n: number of most likely tokens that may be drawn; 0, the default, allows all.
        top_p: total probability of the tokens that may be drawn, above 0 and at most 1, the
            default, which allows all.
        min_p: probability needed relative to the most likely token, from 0, the default, to 1.
        repetition_penalty: above 1, the default, tokens that the row already has get less likely.
        forbidden: token ids that are never chosen; by default none.

    Examples:
        >>> options = lstm_jax.sampling.FilterOptions(temperature=0.8, top_n=5)
        >>> filters = lstm_jax.sampling.make_filters(50, **options)
    """

    temperature: float
    top_n: int
    top_p: float
    min_p: float
    repetition_penalty: float
    forbidden: Sequence[int]


def make_filters(
    vocabulary_size: int,
    *,
    temperature: float = 1.0,
    top_n: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    forbidden: Sequence[int] = (),
) -> Filters:
    """Make filters from plain numbers; see `FilterOptions`.

    Raises:
        ValueError: a value is invalid, or every token is forbidden.

    Examples:
        >>> lstm_jax.sampling.make_filters(5, top_n=-1)
        Traceback (most recent call last):
            ...
        ValueError: top_n is -1; it must be 0 (all tokens) or above
    """
    if vocabulary_size > _LARGEST_VOCABULARY:
        raise ValueError(
            f"vocabulary_size is {vocabulary_size}; filters count {_LARGEST_VOCABULARY} at most"
        )
    penalty = repetition_penalty
    for name, value, fits, what in (
        ("temperature", temperature, 0 <= temperature < math.inf, "0 (greedy) or above"),
        ("top_n", top_n, top_n >= 0, "0 (all tokens) or above"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1 (all tokens)"),
        ("min_p", min_p, 0 <= min_p <= 1, "from 0 (all tokens) to 1"),
        ("repetition_penalty", penalty, 0 < penalty < math.inf, "above 0 (1 is none)"),
    ):
        if not fits:
            raise ValueError(f"{name} is {value}; it must be {what}")
    return Filters(
        jnp.float32(temperature),
        jnp.int32(min(top_n, vocabulary_size)),
        jnp.float32(top_p),
        jnp.float32(min_p),
        jnp.float32(penalty),
        jnp.asarray(_marked(vocabulary_size, forbidden)),
    )


def forbid(logits: Array, forbidden: Array) -> Array:
    """Set logits to -inf where `forbidden [V]` is True.

    Examples:
        >>> from lstm_jax.sampling.filters import forbid
        >>> forbid(jnp.array([1.0, 2.0]), jnp.array([False, True])).tolist()
        [1.0, -inf]
    """
    return jnp.where(forbidden, -jnp.inf, logits)


def penalise_repetition(logits: Array, seen: Array, penalty: Array) -> Array:
    """Make tokens that already occur in a text less likely, for `penalty` > 1.

        z'_v = z_v / penalty  if z_v > 0 else  z_v penalty,   where seen_v

    Args:
        logits: `[..., V]`.
        seen: bool `[..., V]`.
        penalty: above 0; 1 changes nothing, below 1 favours repetition.

    References:
        Keskar et al., arXiv:1909.05858, adapted to negative logits.

    Examples:
        >>> from lstm_jax.sampling.filters import penalise_repetition
        >>> logits, seen = jnp.array([2.0, -2.0, 2.0]), jnp.array([True, True, False])
        >>> penalise_repetition(logits, seen, jnp.float32(2)).tolist()
        [1.0, -4.0, 2.0]
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sharpen(logits: Array, temperature: Array) -> Array:
    """`(z - max z) / temperature`, which cannot overflow at any temperature; 0 is read as 1.

    Examples:
        >>> from lstm_jax.sampling.filters import sharpen
        >>> sharpen(jnp.array([1.0, 2.0]), jnp.float32(0.5)).tolist()
        [-2.0, 0.0]
    """
    highest = lax.stop_gradient(logits.max(-1, keepdims=True))
    return (logits - highest) / jnp.where(temperature > 0, temperature, 1)


def keep_top_n(logits: Array, n: Array) -> Array:
    """Set all but the `n` largest logits `[..., V]` to -inf; `n` = 0 keeps all.

    Exactly n are kept; ties go to the lower token ids.

    Examples:
        >>> from lstm_jax.sampling.filters import keep_top_n
        >>> keep_top_n(jnp.array([1.0, 3.0, 2.0]), jnp.int32(2)).tolist()
        [-inf, 3.0, 2.0]
    """
    keys = _ordered(logits)
    wanted = n.astype(jnp.float32)
    above, tied = _at_largest(keys, lambda at_least: _count(at_least) >= wanted)
    kept = above | _first(tied, wanted - _count(above))
    return jnp.where(kept | (n == 0), logits, -jnp.inf)


def keep_top_p(logits: Array, p: Array) -> Array:
    """Keep the fewest most likely tokens with total probability at least `p` (the nucleus).

    A token is kept if those before it sum to less than p; tied tokens are ordered by id. At least
    one is kept; `p` = 1 keeps all.

    References:
        Holtzman et al., arXiv:1904.09751.

    Examples:
        >>> from lstm_jax.sampling.filters import keep_top_p
        >>> logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
        >>> jnp.isfinite(keep_top_p(logits, jnp.float32(0.7))).tolist()
        [True, True, False]
    """
    keys, weights = _ordered(logits), _weights(logits)
    wanted = p.astype(weights.dtype) * weights.sum(-1)

    def mass(of: Array) -> Array:
        return jnp.sum(jnp.where(of, weights, 0), axis=-1)

    above, tied = _at_largest(keys, lambda at_least: mass(at_least) >= wanted)
    weight = jnp.max(jnp.where(tied, weights, 0), axis=-1)
    # Take k of the tied tokens, where (k - 1) weight < remaining probability <= k weight.
    left = (wanted - mass(above)) / jnp.where(weight > 0, weight, 1)
    kept = above | _first(tied, jnp.maximum(jnp.ceil(left), 1))
    return jnp.where(kept | (p >= 1), logits, -jnp.inf)


def keep_min_p(logits: Array, p: Array) -> Array:
    """Keep tokens at least `p` times as likely as the most likely one; `p` = 0 keeps all.

    References:
        Nguyen et al., arXiv:2407.01082.

    Examples:
        >>> from lstm_jax.sampling.filters import keep_min_p
        >>> logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
        >>> jnp.isfinite(keep_min_p(logits, jnp.float32(0.4))).tolist()
        [True, True, False]
    """
    least = logits.max(-1, keepdims=True) + jnp.log(p.astype(logits.dtype))
    return jnp.where((logits >= least) | (p == 0), logits, -jnp.inf)


def filtered(logits: Array, seen: Array, filters: Filters) -> Array:
    """Apply all filters in turn, including the temperature; disabled ones cost nothing.

    `logits` are `[..., V]`; `seen`, bool of the same shape, marks tokens that a row already has.

    Examples:
        >>> from lstm_jax.sampling.filters import filtered
        >>> filters = lstm_jax.sampling.make_filters(3, temperature=0.5, top_n=2)
        >>> filtered(jnp.array([1.0, 3.0, 2.0]), jnp.zeros(3, bool), filters).tolist()
        [-inf, 0.0, -2.0]
    """
    return _left(_allowed(logits, seen, filters), filters)


def draw(logits: Array, uniform: Array) -> Array:
    """Draw one token per row from the softmax: `[..., V]` -> int32 `[...]`.

    Takes the first token at which the cumulative probability exceeds `uniform`, in [0, 1), so it
    needs one random number per row and never draws a token of probability 0.

    Examples:
        >>> from lstm_jax.sampling.filters import draw
        >>> logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
        >>> int(draw(logits, jnp.float32(0.6)))  # between 0.5 and 0.75
        1
    """
    weights = _weights(logits)
    if logits.shape[-1] <= 4 * _BLOCK:
        return _inverse(weights, uniform * weights.sum(-1))
    # Find the block first, then the place in it: block sums are cheaper than running sums over all.
    blocks = -(-logits.shape[-1] // _BLOCK)
    pad = [(0, 0)] * (weights.ndim - 1) + [(0, blocks * _BLOCK - logits.shape[-1])]
    parts = jnp.pad(weights, pad).reshape(*weights.shape[:-1], blocks, _BLOCK)
    sums = parts.sum(-1)
    target = uniform * sums.sum(-1)
    block = _inverse(sums, target)
    is_before = lax.broadcasted_iota(block.dtype, sums.shape, sums.ndim - 1) < block[..., None]
    before = jnp.sum(jnp.where(is_before, sums, 0), axis=-1)
    part = jnp.take_along_axis(parts, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _inverse(part, target - before)


def choose(logits: Array, uniform: Array, seen: Array, filters: Filters) -> Array:
    """Choose one token per row: the most likely at temperature 0, else a draw from what is left.

    Args:
        logits: `[..., V]`.
        uniform: `[...]`, in [0, 1). The draw takes the first token at which the cumulative
            probability exceeds it, in order of falling likelihood if `top_n` is from 1 to 64, else
            of rising token id.
        seen: bool `[..., V]`.
        filters: from `make_filters`.

    Returns:
        int32 `[...]`.

    Examples:
        >>> from lstm_jax.sampling.filters import choose
        >>> filters = lstm_jax.sampling.make_filters(3, temperature=0)
        >>> logits, seen = jnp.array([[1.0, 3.0, 2.0]]), jnp.zeros((1, 3), bool)
        >>> choose(logits, jnp.zeros(1), seen, filters).tolist()
        [1]
    """
    lists = [length for length in _LISTS if length < logits.shape[-1]]
    branches: list[Callable[[Array], Array]] = [
        _first_highest,
        *(partial(_draw_from_list, length, filters, uniform) for length in lists),
        lambda allowed: draw(_left(allowed, filters), uniform),
    ]
    too_short = sum((filters.top_n > length).astype(jnp.int32) for length in lists)
    kind = jnp.where(filters.top_n > 0, 1 + too_short, len(branches) - 1)
    kind = jnp.where(filters.temperature > 0, kind, 0)
    return lax.switch(kind, branches, _allowed(logits, seen, filters))


def _draw_from_list(length: int, filters: Filters, uniform: Array, allowed: Array) -> Array:
    """Draw from the `top_n` most likely tokens, of which there are at most `length`."""
    highest, ids = top_k(allowed, length)
    listed = sharpen(highest, filters.temperature)
    listed = jnp.where(jnp.arange(length) < filters.top_n, listed, -jnp.inf)
    place = draw(_narrowed(listed, filters), uniform)
    return jnp.take_along_axis(ids, place[..., None], axis=-1)[..., 0]


def top_k(values: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` of `[..., V]`, where ties go to the lower ids; on a CPU from fewer candidates."""
    is_symbolic = not isinstance(values.size, int)
    if is_symbolic or values.size < _FEW or values.shape[-1] < 4 * k * _PART:
        return _top_k_of_all(k, values)
    return lax.platform_dependent(
        values, cpu=partial(_top_k_by_parts, k), default=partial(_top_k_of_all, k)
    )


def _top_k_of_all(k: int, values: Array) -> tuple[Array, Array]:
    highest, ids = lax.top_k(values, k)
    return highest, ids


def _top_k_by_parts(k: int, values: Array) -> tuple[Array, Array]:
    """Look only at the k parts with the highest maxima, and at what follows the last whole part.

    No other part has one of the k highest values, since the maxima of those k parts come before all
    of its values. The ids stay in rising order, so ties go to the lower ones.
    """
    rows, size = values.shape[:-1], values.shape[-1]
    window = (1,) * len(rows) + (_PART,)
    maxima = lax.reduce_window(values, -jnp.inf, lax.max, window, window, "VALID")
    first = _PART * jnp.sort(lax.top_k(maxima, k)[1], axis=-1)
    offsets = lax.broadcasted_iota(first.dtype, (*first.shape, _PART), first.ndim)
    within = (first[..., None] + offsets).reshape(*rows, k * _PART)
    behind = jnp.arange(size - size % _PART, size, dtype=first.dtype)
    ids = jnp.concatenate([within, jnp.broadcast_to(behind, (*rows, behind.size))], axis=-1)
    highest, places = lax.top_k(jnp.take_along_axis(values, ids, axis=-1), k)
    return highest, jnp.take_along_axis(ids, places, axis=-1)


def _allowed(logits: Array, seen: Array, filters: Filters) -> Array:
    """Apply the filters before the temperature."""
    penalty = filters.repetition_penalty
    return penalise_repetition(forbid(logits, filters.forbidden), seen, penalty)


def _left(allowed: Array, filters: Filters) -> Array:
    """Apply the temperature and the filters after it."""
    logits = sharpen(allowed, filters.temperature)
    logits = _if(filters.top_n > 0, lambda z: keep_top_n(z, filters.top_n), logits)
    return _narrowed(logits, filters)


def _narrowed(logits: Array, filters: Filters) -> Array:
    """Apply the filters after top-n."""
    logits = _if(filters.top_p < 1, lambda z: keep_top_p(z, filters.top_p), logits)
    return keep_min_p(logits, filters.min_p)


def _first_highest(logits: Array) -> Array:
    """`argmax`, whose loop in XLA takes tens of times as long on CPU."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_highest = logits == logits.max(-1, keepdims=True)
    return jnp.min(jnp.where(is_highest, ids, logits.shape[-1] - 1), axis=-1)


def _if(condition: Array, change: Callable[[Array], Array], values: Array) -> Array:
    return lax.cond(condition, change, lambda values: values, values)


def _weights(logits: Array) -> Array:
    return jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))


def _inverse(weights: Array, target: Array) -> Array:
    """First place where the running sum of weights exceeds `target`; never one of weight 0."""
    below = jnp.cumsum(weights, axis=-1) <= target[..., None]
    last_possible = weights.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    first_possible = jnp.argmax(weights > 0, axis=-1)
    place = jnp.clip(jnp.sum(below, axis=-1), first_possible, last_possible)
    return place.astype(jnp.int32)


def _ordered(values: Array) -> Array:
    """Map float32 to int32 in the same order (-0 below +0, NaN outermost)."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _at_largest(keys: Array, holds: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Find the largest threshold for which `holds`; returns the keys above it, and those at it."""

    def narrow(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = holds(keys >= middle[..., None])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.full(keys.shape[:-1], -(2**31), jnp.int32)
    largest = lax.fori_loop(0, 32, narrow, (low, jnp.full_like(low, 2**31 - 1)))[0][..., None]
    return keys > largest, keys == largest


def _count(of: Array) -> Array:
    """Number of True entries; in float32, whose sums take half the time of int32's on CPU."""
    return jnp.sum(of.astype(jnp.float32), axis=-1)


def _first(marked: Array, number: Array) -> Array:
    """The first `number [...]` of the marked entries `[..., V]`."""

    def cut(marked: Array) -> Array:
        running = jnp.cumsum(marked.astype(jnp.float32), axis=-1)
        return marked & (running <= number[..., None])

    return _if(jnp.any(_count(marked) > number), cut, marked)


def _marked(vocabulary_size: int, forbidden: Sequence[int]) -> npt.NDArray[np.bool_]:
    marked = np.zeros(vocabulary_size, np.bool_)
    for token in forbidden:
        if not 0 <= token < vocabulary_size:
            raise ValueError(f"forbidden token {token} is no id; they are below {vocabulary_size}")
        marked[token] = True
    if marked.all():
        raise ValueError("every token is forbidden; leave at least one to choose")
    return marked

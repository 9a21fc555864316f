"""From logits to tokens: filters, and one jitted loop that fills the free places of a template.

Shapes: T time, B batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax, random

from lstm_jax.models import LanguageModel, LanguageModelParams

FREE = -1
"""The entry of a template that stands for a place to be filled."""


class Filters(NamedTuple):
    """How a token is chosen. Traced values: changing one recompiles nothing.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (the first, if tied).
        top_n: how many of the most likely tokens may be chosen; 0 for all.
        forbidden: bool `[V]`, True = never chosen.
    """

    temperature: Array
    top_n: Array
    forbidden: Array


def keep_top_n(logits: Array, n: Array) -> Array:
    """Sets all but the `n` largest logits `[..., V]` to -inf; `n` = 0 keeps all.

    Exactly n are kept: of equal logits, those with the lower token ids. The n-th largest is found
    without a sort, by bisection over the 2^32 float32 values.
    """
    keys = _ordered_bits(logits)

    def narrow(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(keys >= middle[..., None], axis=-1) >= n
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(logits.shape[:-1], jnp.uint32)
    threshold, _ = lax.fori_loop(0, 32, narrow, (low, jnp.full_like(low, 0xFFFFFFFF)))
    above = keys > threshold[..., None]
    tied = keys == threshold[..., None]
    places = n - jnp.sum(above, axis=-1, keepdims=True)
    kept = above | (tied & (jnp.cumsum(tied, axis=-1) <= places))
    return jnp.where(kept | (n == 0), logits, -jnp.inf)


def _ordered_bits(values: Array) -> Array:
    """float32 -> uint32 of the same order (-0 below +0, NaN outermost)."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(0x80000000)
    return jnp.where(bits & sign, ~bits, bits | sign)


def choose(logits: Array, uniform: Array, filters: Filters) -> Array:
    """Draws one token a row: `[..., V]` -> int32 `[...]`.

    The token is where the cumulative probability first exceeds `uniform` in [0, 1), so it takes
    one random number a row, and never a token of probability 0.
    """
    logits = jnp.where(filters.forbidden, -jnp.inf, logits)
    greedy = jnp.argmax(logits, axis=-1)
    temperature = jnp.where(filters.temperature > 0, filters.temperature, 1)
    kept = keep_top_n(logits, filters.top_n) / temperature
    weights = jnp.exp(kept - jnp.max(kept, axis=-1, keepdims=True))
    cumulative = jnp.cumsum(weights, axis=-1)
    below = cumulative <= uniform[..., None] * cumulative[..., -1:]
    last_possible = logits.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    drawn = jnp.minimum(jnp.sum(below, axis=-1), last_possible)
    return jnp.where(filters.temperature > 0, drawn, greedy).astype(jnp.int32)


def generate(
    model: LanguageModel,
    params: LanguageModelParams,
    template: npt.ArrayLike,
    *,
    key: Array,
    temperature: float = 1.0,
    top_n: int = 0,
    forbidden: Sequence[int] = (),
    allow_bidirectional: bool = False,
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Fills the free places of a template with what the model says.

    A prompt is a template whose beginning is known, and an acrostic one with known places
    anywhere; the first may be free. The beginning that is known in every row goes through the
    layers as one scan, the rest one token at a time in one jitted loop. Template lengths are
    padded to powers of two, so a new length seldom compiles anything.

    Args:
        model: a language model; not bidirectional.
        params: its parameters.
        template: integers `[T, B]`, `FREE` (-1) where a token is to be filled in.
        key: a typed PRNG key. The draw at a place depends on the key, the row and the time alone.
        temperature: see `Filters`.
        top_n: see `Filters`.
        forbidden: token ids that are never chosen.
        allow_bidirectional: let a bidirectional model go on token by token, its backward
            direction as well, to show that what it writes is no use.

    Returns:
        int32 `[T, B]`: the template with every place filled.

    Raises:
        ValueError: a template, temperature or top_n that makes no sense, or a bidirectional model.
    """
    template = np.asarray(template)
    _check(model, template, temperature, top_n, allow_bidirectional)
    times = len(template)
    free_rows = np.flatnonzero((template == FREE).any(axis=1))
    if not free_rows.size:
        return template.astype(np.int32)
    # A backward direction that saw the whole prompt would be fed what training never fed it.
    known = 0 if model.config.bidirectional else int(free_rows[0])
    # Padding stands in front of the prompt, masked, and behind the end, never reached.
    front = _power_of_two(known) - known
    back = _power_of_two(times - known) - (times - known)
    padded = np.pad(template.astype(np.int32), ((front, back), (0, 0)))
    filters = Filters(jnp.float32(temperature), jnp.int32(top_n), _marked(model, forbidden))
    filled = _fill(
        model, front + known, params, padded, np.int32(front), np.int32(times), key, filters
    )
    return np.asarray(filled)[front : front + times]


@partial(jax.jit, static_argnums=(0, 1))
def _fill(
    model: LanguageModel,
    prefix: int,
    params: LanguageModelParams,
    template_TB: Array,
    front: Array,
    times: Array,
    key: Array,
    filters: Filters,
) -> Array:
    batch_size = template_TB.shape[1]
    carry = model.zero_carry(params, batch_size)
    hidden_BH = jnp.zeros((batch_size, model.config.output_size), jnp.float32)
    if prefix:
        mask_TB = jnp.broadcast_to((jnp.arange(prefix) >= front)[:, None], (prefix, batch_size))
        carry, hs_TBH = model.hidden(params, carry, template_TB[:prefix], mask=mask_TB)
        hidden_BH = hs_TBH[-1]
    hidden_BH = hidden_BH.astype(jax.tree.leaves(carry)[0].dtype)
    rows = jax.vmap(random.fold_in, (None, 0))(key, jnp.arange(batch_size))

    def fill(
        place: Array, state: tuple[Array, tuple[Any, ...], Array]
    ) -> tuple[Array, tuple[Any, ...], Array]:
        tokens_TB, carry, hidden_BH = state
        keys = jax.vmap(random.fold_in, (0, None))(rows, place - front)
        uniform_B = jax.vmap(random.uniform)(keys)
        drawn_B = choose(model.logits(params, hidden_BH), uniform_B, filters)
        given_B = tokens_TB[place]
        token_B = jnp.where(given_B == FREE, drawn_B, given_B)
        carry, hidden_BH = model.step(
            params, carry, token_B, allow_bidirectional=model.config.bidirectional
        )
        return tokens_TB.at[place].set(token_B), carry, hidden_BH

    state = (template_TB, carry, hidden_BH)
    tokens_TB: Array
    tokens_TB, _, _ = lax.fori_loop(prefix, front + times, fill, state)
    return tokens_TB


def _marked(model: LanguageModel, forbidden: Sequence[int]) -> Array:
    marked = np.zeros(model.vocabulary_size, np.bool_)
    for token in forbidden:
        if not 0 <= token < len(marked):
            raise ValueError(f"forbidden token {token} is no id; they are below {len(marked)}")
        marked[token] = True
    if marked.all():
        raise ValueError("every token is forbidden; leave at least one to choose")
    return jnp.asarray(marked)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0


def _check(
    model: LanguageModel,
    template: np.ndarray[Any, Any],
    temperature: float,
    top_n: int,
    allow_bidirectional: bool,
) -> None:
    if model.config.bidirectional and not allow_bidirectional:
        raise ValueError(
            "this model is bidirectional: it sees the future, so it cannot write what comes next"
        )
    if template.ndim != 2 or not np.issubdtype(template.dtype, np.integer) or not template.size:
        raise ValueError(
            f"template is {template.dtype} of shape {template.shape}; expected integers [T, B]"
        )
    if template.min() < FREE or template.max() >= model.vocabulary_size:
        raise ValueError(
            f"template has entries from {template.min()} to {template.max()}; expected {FREE} "
            f"(free) or token ids below {model.vocabulary_size}"
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or above")
    if top_n < 0:
        raise ValueError(f"top_n is {top_n}; it must be 0 (all tokens) or above")

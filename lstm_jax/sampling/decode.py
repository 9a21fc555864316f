"""The decoding loop: prompts are prefilled by scans, then tokens are generated one at a time.

Shapes: T time, B batch, H hidden size, V vocabulary, S states of the stop automaton.

The places of a row are counted from its own first free one. Prompts of different lengths are padded
in front, and masked there, so that they end at the same time step.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax, random

from lstm_jax.models import LanguageModel, LanguageModelParams, output_layer
from lstm_jax.sampling.filters import Filters, choose
from lstm_jax.sampling.stops import Ids, Stops

FREE = -1
"""Template entry that marks a place to be filled."""

PREFILL_CHUNK = 1024
"""Most time steps whose input products are formed at once; a CPU takes fewer."""

_AT_ONCE, _AT_ONCE_ON_CPU = 1 << 16, 256  # tokens; on a CPU larger arrays leave the caches


def refuse_bidirectional(model: LanguageModel) -> None:
    """Raise ValueError for a bidirectional model, which cannot predict the next token."""
    if model.config.bidirectional:
        raise ValueError(
            "this model is bidirectional: it sees the future, so it can neither generate nor score "
            "what comes next"
        )


def check_template(
    model: LanguageModel, template: npt.NDArray[np.integer], shape: Literal["[T]", "[T, B]"]
) -> None:
    """Raise ValueError unless the array is a valid template for the model."""
    is_of_ids = np.issubdtype(template.dtype, np.integer) and template.size
    if template.ndim != shape.count(",") + 1 or not is_of_ids:
        raise ValueError(
            f"template is {template.dtype} of shape {template.shape}; expected integers {shape}"
        )
    if template.min() < FREE or template.max() >= model.vocabulary_size:
        raise ValueError(
            f"template has entries from {template.min()} to {template.max()}; expected {FREE} "
            f"(free) or token ids below {model.vocabulary_size}"
        )


def prompt_length(row: npt.NDArray[np.integer]) -> int:
    """Number of known tokens before the first free place of a template `[T]`."""
    free = np.flatnonzero(row == FREE)
    return int(free[0]) if free.size else len(row)


class Rows(NamedTuple):
    """What stays constant while a batch is decoded."""

    key: Array  # typed keys `[B]`, one per row
    known: Array | Ids  # `[B]`, length of each row's prompt
    places: Array | Ids  # `[B]`, places after the prompt; 0 for a padding row


class DecodeState(NamedTuple):
    """State of a batch during decoding."""

    carry: tuple[Any, ...]  # of the stack
    hidden: Array  # `[B, H]`, latest output of the top layer, which predicts the next token
    seen: Array  # bool `[B, V]`, tokens that already occur in a row
    matched: Array  # int32 `[B]`, states of the stop automaton
    stopped: Array  # bool `[B]`, whether a stop sequence is complete
    place: Array  # int32, the next place to fill


def prefill(
    model: LanguageModel, params: LanguageModelParams, prompts: list[Ids]
) -> tuple[tuple[Any, ...], Array]:
    """Run prompts `[T_b]`; returns carry and top-layer output `[B, H]`, zeros for empty prompts."""
    longest, at_once = max(map(len, prompts)), _steps_at_once(len(prompts))
    parts, rest = divmod(longest, at_once)
    first = power_of_two(rest)
    end = first + parts * at_once
    shape = (first + power_of_two(parts) * at_once, len(prompts))  # few programs are compiled
    tokens_TB = np.zeros(shape, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_TB[end - len(prompt) : end, row] = prompt
    mask_TB = np.arange(len(tokens_TB))[:, None] >= end - np.array([*map(len, prompts)])
    state = _before_prompt(model, params, len(prompts))
    for piece, count in ((slice(0, first), min(first, 1)), (slice(first, None), parts)):
        if count:
            chunk = tokens_TB[piece], mask_TB[piece]
            state = _prefill(model, params, state, *chunk, np.int32(count))
    return state


@partial(jax.jit, static_argnums=(0, 2))
def _before_prompt(
    model: LanguageModel, params: LanguageModelParams, rows: int
) -> tuple[tuple[Any, ...], Array]:
    carry = model.zero_carry(params, rows)
    dtype = jax.tree.leaves(carry)[0].dtype
    return carry, jnp.zeros((rows, model.config.output_size), dtype)


def _steps_at_once(rows: int) -> int:
    tokens = _AT_ONCE_ON_CPU if jax.default_backend() == "cpu" else _AT_ONCE
    return min(PREFILL_CHUNK, max(1, power_of_two(tokens // rows)))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(
    model: LanguageModel,
    params: LanguageModelParams,
    state: tuple[tuple[Any, ...], Array],
    tokens_TB: Array,
    mask_TB: Array,
    count: Array,
) -> tuple[tuple[Any, ...], Array]:
    """Read this many parts; what else there is of `[T, B]` only keeps the shapes few."""
    rows = tokens_TB.shape[1]
    shape = (-1, min(len(tokens_TB), _steps_at_once(rows)), rows)
    tokens_NTB, mask_NTB = tokens_TB.reshape(shape), mask_TB.reshape(shape)
    if model.vocabulary_size < min(tokens_TB.size, _AT_ONCE):
        params = model.folded(params)  # once, not for every part

    def read(number: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
        carry, hs_TBH = model.hidden(params, state[0], tokens_NTB[number], mask=mask_NTB[number])
        return carry, hs_TBH[-1].astype(state[1].dtype)

    return lax.fori_loop(0, count, read, state)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(
    model: LanguageModel,
    with_scores: bool,
    params: LanguageModelParams,
    writing: DecodeState,
    rows: Rows,
    given_TB: Array,
    times: Array,
    filters: Filters,
    stops: Stops,
) -> tuple[DecodeState, Array, Array]:
    """Fill at most `times` places, fewer if every row has ended.

    The state, `writing`, is donated, and `given_TB` has the next T >= `times` places, with `FREE`
    where one is to be filled.

    Returns:
        The new state; tokens int32 `[T, B]`, `FREE` after a row's end; and with `with_scores` their
        log-probabilities in nats under the unfiltered model, `[T, B]`, 0 where there are none.
    """
    params = untied(params)
    each_B = jnp.arange(given_TB.shape[1])
    begun = writing.place
    after_SV, length_S = jnp.asarray(stops.after), jnp.asarray(stops.length)

    def is_on(writing: DecodeState) -> Array:
        return ~writing.stopped & (writing.place < rows.places)

    def has_more(state: tuple[DecodeState, Array, Array]) -> Array:
        return (state[0].place - begun < times) & jnp.any(is_on(state[0]))

    def write_one(state: tuple[DecodeState, Array, Array]) -> tuple[DecodeState, Array, Array]:
        writing, tokens_TB, scores_TB = state
        index, on_B = writing.place - begun, is_on(writing)
        logits_BV = model.logits(params, writing.hidden)
        drawn_B = choose(logits_BV, uniform_TB[index], writing.seen, filters)
        is_free_B = given_TB[index] == FREE
        token_B = jnp.where(is_free_B, drawn_B, given_TB[index])
        if with_scores:
            score_B = logits_BV[each_B, token_B] - jax.nn.logsumexp(logits_BV, axis=-1)
            score_B = score_B.astype(jnp.float32)
            scores_TB = scores_TB.at[index].set(jnp.where(on_B, score_B, 0))
        carry, hidden_BH = model.step(
            params, writing.carry, token_B, allow_bidirectional=model.config.bidirectional
        )
        # Tokens given by the template cannot be part of a stop sequence.
        matched_B = jnp.where(is_free_B, after_SV[writing.matched, token_B], 0)
        writing = DecodeState(
            carry,
            hidden_BH,
            writing.seen.at[each_B, token_B].set(True),
            jnp.where(on_B, matched_B, writing.matched),
            writing.stopped | (on_B & (length_S[matched_B] > 0)),
            writing.place + 1,
        )
        return writing, tokens_TB.at[index].set(jnp.where(on_B, token_B, FREE)), scores_TB

    # For all places at once: in the loop they would take a fifth of a small step.
    place_T = begun + jnp.arange(len(given_TB), dtype=jnp.int32)
    place_TB = place_T[:, None] + rows.known[None]
    uniform_TB = jax.vmap(jax.vmap(_uniform), in_axes=(None, 0))(rows.key, place_TB)
    empty = jnp.full(given_TB.shape, FREE, jnp.int32)
    state = (writing, empty, jnp.zeros(given_TB.shape if with_scores else (), jnp.float32))
    return lax.while_loop(has_more, write_one, state)


def untied(params: LanguageModelParams) -> LanguageModelParams:
    """The parameters with tied weights of the output layer transposed once, outside of a loop."""
    return params._replace(output=lax.optimization_barrier(output_layer(params)))


def _uniform(key: Array, place: Array) -> Array:
    """The number in [0, 1) for a row's place, of float32 also under JAX's 64-bit types."""
    return random.uniform(random.fold_in(key, place), dtype=jnp.float32)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`; 0 for 0."""
    return 1 << (size - 1).bit_length() if size else 0

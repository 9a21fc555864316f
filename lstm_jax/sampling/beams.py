"""Beam search for the most likely fillings of a template.

Shapes: K hypotheses, N places, V vocabulary.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from lstm_jax.checks import require_count
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling.decode import (
    FREE,
    check_template,
    power_of_two,
    prefill,
    prompt_length,
    refuse_bidirectional,
    untied,
)
from lstm_jax.sampling.filters import forbid, make_filters, top_k
from lstm_jax.sampling.stops import Ids, Stops, make_stops

_MOST_PLACES = 1 << 10  # at once; between, a signal can end the search


class Hypothesis(NamedTuple):
    """One filling of a template.

    Attributes:
        tokens: int32 `[T]`, the prompt and its continuation, without the stop sequence.
        log_probability: sum over all tokens after the prompt, including a stop sequence, in nats.
        score: `log_probability / n^length_penalty`, by which hypotheses are ranked; n is the number
            of tokens after the prompt, including a stop sequence.
        stopped: whether a stop sequence ended it.

    Examples:
        >>> lstm_jax.sampling.Hypothesis(np.array([1, 2]), -1.5, -0.75, stopped=False).score
        -0.75
    """

    tokens: Ids
    log_probability: float
    score: float
    stopped: bool


def beam_search(
    model: LanguageModel,
    params: LanguageModelParams,
    template: npt.ArrayLike,
    *,
    beams: int,
    length_penalty: float = 1.0,
    forbidden: Sequence[int] = (),
    stops: Sequence[Sequence[int]] = (),
) -> list[Hypothesis]:
    """Find the most likely fillings of a template with a beam of K hypotheses.

    At each place every hypothesis is extended by every token, and the K extensions with the highest
    scores are kept. A hypothesis that a stop sequence has ended stays unchanged for as long as its
    score is among them. If K is at least the number of all fillings, the search is exhaustive.

    Args:
        model: a language model; not bidirectional.
        params: its parameters.
        template: integers `[T]`, with `FREE` (-1) where a token is to be filled in. Given tokens
            count in the score, so the search prefers fillings that lead up to them.
        beams: K.
        length_penalty: exponent of the length by which log-probabilities are divided. 0 compares
            sums, which favours short texts; 1 compares means.
        forbidden: token ids that are never chosen.
        stops: sequences of token ids that end a hypothesis.

    Returns:
        The hypotheses, best first; fewer than K if there are not that many fillings.

    Raises:
        ValueError: an invalid argument, or a bidirectional model.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> best, *others = lstm_jax.sampling.beam_search(model, params, [1, -1, -1], beams=3)
        >>> len(best.tokens), len(others), best.score >= others[0].score
        (3, 2, True)
    """
    row = np.asarray(template)
    refuse_bidirectional(model)
    check_template(model, row, "[T]")
    require_count("beams", beams)
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty is {length_penalty}; it must be 0 or above")
    known = prompt_length(row)
    filters = make_filters(model.vocabulary_size, forbidden=forbidden)
    automaton = make_stops(model.vocabulary_size, stops)
    prompt, rest = row[:known].astype(np.int32), row[known:].astype(np.int32)
    size = min(_MOST_PLACES, max(1, power_of_two(len(rest))))
    found = _first(beams, size, *prefill(model, params, [prompt]))
    written = np.zeros((beams, 0), np.int32)
    for first in range(0, len(rest), size):
        given, some = np.full(size, FREE, np.int32), rest[first : first + size]
        given[: len(some)] = some
        found = _search(
            model, params, found, given, np.int32(len(some)), np.float32(length_penalty),
            filters.forbidden, automaton,
        )  # fmt: skip
        written = np.append(written[np.asarray(found.root)], np.asarray(found.tokens), axis=1)
        if np.asarray(found.stopped).all():
            break
    return _hypotheses(prompt, automaton, written, jax.tree.map(np.asarray, found))


class _Beams(NamedTuple):
    """State of all hypotheses; see `Hypothesis` and `DecodeState`."""

    carry: Any
    hidden: Array
    root: Array  # the hypothesis of the last call that it continues
    tokens: Array  # what it adds to that one
    log_probability: Array
    length: Array
    matched: Array
    stopped: Array
    score: Array


@partial(jax.jit, static_argnums=(0, 1))
def _first(beams: int, size: int, carry: Any, hidden_1H: Array) -> _Beams:
    zeros_K = jnp.zeros(beams, jnp.int32)
    # All but the first start impossible, so that the first place is filled in K different ways.
    impossible_K = jnp.where(jnp.arange(beams) > 0, -jnp.inf, 0.0)
    return _Beams(
        jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), carry),
        jnp.repeat(hidden_1H, beams, axis=0),
        zeros_K,
        jnp.full((beams, size), FREE, jnp.int32),
        impossible_K, zeros_K, zeros_K, zeros_K.astype(bool), impossible_K,
    )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _search(
    model: LanguageModel,
    params: LanguageModelParams,
    before: _Beams,
    given_N: Array,
    places: Array,
    length_penalty: Array,
    forbidden_V: Array,
    stops: Stops,
) -> _Beams:
    params = untied(params)
    after_SV, length_S = jnp.asarray(stops.after), jnp.asarray(stops.length)
    size, (beams, _) = model.vocabulary_size, before.tokens.shape
    before = before._replace(
        root=jnp.arange(beams, dtype=jnp.int32), tokens=jnp.full_like(before.tokens, FREE)
    )

    def extend(place: Array, state: _Beams) -> _Beams:
        given = given_N[place]
        allowed_V = jnp.where(given == FREE, ~forbidden_V, jnp.arange(size) == given)
        step_KV = jax.nn.log_softmax(model.logits(params, state.hidden)).astype(jnp.float32)
        step_KV = forbid(step_KV, ~allowed_V)
        # An ended hypothesis has a single extension, by token 0, which changes nothing.
        idle_V = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)
        step_KV = jnp.where(state.stopped[:, None], idle_V, step_KV)
        total_KV = state.log_probability[:, None] + step_KV
        length_K = jnp.where(state.stopped, state.length, state.length + 1)
        score_KV = total_KV / (length_K.astype(jnp.float32) ** length_penalty)[:, None]
        score_K, chosen_K = top_k(score_KV.reshape(-1), beams)
        parent_K, token_K = chosen_K // size, (chosen_K % size).astype(jnp.int32)
        carry, hidden, root_K, tokens, _, _, matched_K, stopped_K, _ = jax.tree.map(
            lambda leaf: leaf[parent_K], state
        )
        carry, hidden = model.step(params, carry, token_K)
        next_K = jnp.where(given == FREE, after_SV[matched_K, token_K], 0)
        matched_K = jnp.where(stopped_K, matched_K, next_K)
        written_K = jnp.where(stopped_K, FREE, token_K)
        return _Beams(
            carry,
            hidden,
            root_K,
            tokens.at[:, place].set(written_K),
            total_KV.reshape(-1)[chosen_K],
            length_K[parent_K],
            matched_K,
            stopped_K | (length_S[matched_K] > 0),
            score_K,
        )

    return lax.fori_loop(0, places, extend, before)


def _hypotheses(prompt: Ids, stops: Stops, tokens: Ids, found: _Beams) -> list[Hypothesis]:
    hypotheses = []
    for index, score in enumerate(found.score.tolist()):
        if not math.isfinite(score):
            continue
        written = tokens[index][: found.length[index]]
        is_stopped = bool(found.stopped[index])
        if is_stopped:
            written = written[: len(written) - stops.length[found.matched[index]]]
        log_probability = float(found.log_probability[index])
        whole = np.concatenate([prompt, written])
        hypotheses.append(Hypothesis(whole, log_probability, score, is_stopped))
    return hypotheses

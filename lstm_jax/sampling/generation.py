"""Text generation with a language model: whole texts, streams, and the best of several.

Shapes: T time, B batch.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from lstm_jax.checks import require_count, require_key
from lstm_jax.dropout import keys_of_rows
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling.decode import (
    FREE,
    DecodeState,
    Rows,
    check_template,
    decode,
    power_of_two,
    prefill,
    prompt_length,
    refuse_bidirectional,
)
from lstm_jax.sampling.filters import FilterOptions, Filters, make_filters
from lstm_jax.sampling.stops import Ids, Stops, make_stops

WeightDtype = Literal["float32", "bfloat16"]

_MOST_PLACES = 1 << 14


class Texts(NamedTuple):
    """Generated texts.

    Attributes:
        tokens: int32 `[T, B]`, including each row's prompt; `FREE` after its end.
        lengths: int32 `[B]`, number of tokens of each row, without the stop sequence.
        stopped: bool `[B]`, whether a stop sequence ended the row.
        log_probabilities: float32 `[T, B]`, in nats, of each token after the prompt, given ones
            included, under the unfiltered model; NaN elsewhere. None if not requested.

    Examples:
        >>> tokens, lengths = np.array([[3], [4], [-1]], np.int32), np.array([2], np.int32)
        >>> lstm_jax.sampling.Texts(tokens, lengths, np.array([True]), None).row(0).tolist()
        [3, 4]
    """

    tokens: Ids
    lengths: Ids
    stopped: npt.NDArray[np.bool_]
    log_probabilities: npt.NDArray[np.float32] | None

    def row(self, index: int) -> Ids:
        """The tokens of one row, `[T_b]`."""
        return self.tokens[: self.lengths[index], index]


class GenerateOptions(FilterOptions, total=False):
    """Keyword arguments of `generate`, `stream` and `best_of`; see `generate`."""

    lengths: npt.ArrayLike | None
    stops: Sequence[Sequence[int]]
    first_row: int
    allow_bidirectional: bool


def generate(
    model: LanguageModel,
    params: LanguageModelParams,
    template: npt.ArrayLike,
    *,
    key: Array,
    log_probabilities: bool = False,
    **options: Unpack[GenerateOptions],
) -> Texts:
    """Fill the free places of a template with tokens from the model.

    A prompt is a template whose beginning is known; an acrostic has known places anywhere, or even
    a free first place. The tokens before a row's first free place are prefilled by a scan, at
    training speed; the rest is decoded one token at a time in one jitted loop. Sizes are padded to
    powers of two, so a new size seldom recompiles.

    Args:
        model: a language model; not bidirectional.
        params: its parameters.
        template: integers `[T, B]`, with `FREE` (-1) where a token is to be filled in.
        key: a typed PRNG key. A draw depends only on the key, the row, and the place in the row.
        log_probabilities: whether to return them.
        **options: as follows, and the filters of `FilterOptions`.

    Keyword Args:
        lengths: `[B]`, number of places in each row; by default T. See `stack_rows`.
        stops: sequences of token ids; one generated in free places ends its row and is removed.
        first_row: number of the first row, if these are some of many; by default 0.
        allow_bidirectional: let a bidirectional model continue token by token with both directions,
            to show that its output is useless.

    Raises:
        ValueError: an invalid argument, or a bidirectional model.
        TypeError: `key` is no typed key.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> template = np.array([[1], [2], [-1], [3], [-1]])  # fill in the third and the last
        >>> texts = lstm_jax.generate(model, params, template, key=jax.random.key(1), top_n=3)
        >>> texts.tokens.shape, texts.tokens[[0, 1, 3], 0].tolist()
        ((5, 1), [1, 2, 3])
    """
    job = _prepare(model, template, key, **options)
    chunks = list(_chunks(model, params, job, with_scores=log_probabilities))
    return _texts(job, chunks, with_scores=log_probabilities)


def stream(
    model: LanguageModel,
    params: LanguageModelParams,
    template: npt.ArrayLike,
    *,
    key: Array,
    places: int = 16,
    **options: Unpack[GenerateOptions],
) -> Iterator[list[Ids]]:
    """Like `generate`, but yield the tokens after each row's prompt as they are decoded.

    The tokens are those of `generate` with the same arguments. They are yielded after every
    `places` places, int32 `[N]` for each row, possibly none; a possible beginning of a stop
    sequence is held back until it turns out not to be one.

    Raises:
        ValueError: as for `generate`; raised before anything is decoded.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params, template = model.init(jax.random.key(0)), np.full((8, 1), -1)
        >>> written = lstm_jax.sampling.stream(
        ...     model, params, template, key=jax.random.key(1), places=4
        ... )
        >>> [len(rows[0]) for rows in written]
        [4, 4]
    """
    require_count("places", places)
    job = _prepare(model, template, key, **options)
    return _settled(job, _chunks(model, params, job, places=places))


def best_of(
    model: LanguageModel,
    params: LanguageModelParams,
    template: npt.ArrayLike,
    number: int,
    *,
    key: Array,
    **options: Unpack[GenerateOptions],
) -> Texts:
    """Fill each row `number` times, and return the one with the highest mean log-probability.

    Tokens given by the template count too, which favours fillings that lead up to them. Row i of
    the template becomes rows i N to (i + 1) N - 1 of the draws, with N = `number`.

    Raises:
        ValueError: as for `generate`, or `number` is below 1.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params, template = model.init(jax.random.key(0)), np.full((8, 2), -1)
        >>> texts = lstm_jax.sampling.best_of(model, params, template, 3, key=jax.random.key(1))
        >>> texts.tokens.shape
        (8, 2)
    """
    require_count("number", number)
    lengths = options.pop("lengths", None)
    if lengths is not None:
        options["lengths"] = np.repeat(np.asarray(lengths), number)
    options["first_row"] = options.get("first_row", 0) * number
    repeated = np.repeat(np.asarray(template), number, axis=-1)
    texts = generate(model, params, repeated, key=key, log_probabilities=True, **options)
    scores = texts.log_probabilities
    assert scores is not None
    written = np.maximum(np.isfinite(scores).sum(0), 1)
    means = np.nansum(scores, axis=0, dtype=np.float64) / written
    best = means.reshape(-1, number).argmax(1) + number * np.arange(len(means) // number)
    return Texts(texts.tokens[:, best], texts.lengths[best], texts.stopped[best], scores[:, best])


def stack_rows(rows: Sequence[npt.ArrayLike]) -> tuple[Ids, Ids]:
    """Stack templates `[T_b]` of different lengths into `[T, B]`, with their lengths `[B]`.

    Raises:
        ValueError: there are no rows, or one is not a list of integers.

    Examples:
        >>> template, lengths = lstm_jax.sampling.stack_rows([[1, 2, -1], [3, -1]])
        >>> template.tolist(), lengths.tolist()
        ([[1, 3], [2, -1], [-1, -1]], [3, 2])
    """
    arrays = [np.asarray(row) for row in rows]
    if not arrays:
        raise ValueError("there are no rows; give at least one")
    for array in arrays:
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"a row is {array.dtype} of shape {array.shape}; expected integers [T]"
            )
    return _stacked(arrays)


def _stacked(rows: Sequence[npt.NDArray[Any]]) -> tuple[Ids, Ids]:
    lengths = np.array([len(row) for row in rows], np.int32)
    stacked = np.full((lengths.max(), len(rows)), FREE, np.int32)
    for index, row in enumerate(rows):
        stacked[: len(row), index] = row
    return stacked, lengths


def with_weights(
    model: LanguageModel, params: LanguageModelParams, dtype: WeightDtype
) -> tuple[LanguageModel, LanguageModelParams]:
    """Convert a model's matrices, and their products, to another dtype.

    Decoding one text reads every weight at every step, so halving the bytes gives up to twice the
    speed. Biases, sums, carry and softmax stay float32.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> model, params = lstm_jax.sampling.with_weights(model, params, "bfloat16")
        >>> params.output.w.dtype, params.output.b.dtype
        (dtype(bfloat16), dtype('float32'))
    """
    config = dataclasses.replace(model.config, compute_dtype=dtype)
    stored = jnp.dtype(dtype)
    cast = jax.tree.map(lambda leaf: leaf.astype(stored) if leaf.ndim > 1 else leaf, params)
    return LanguageModel(config, model.vocabulary_size), cast


_keys_of_rows = jax.jit(keys_of_rows, static_argnums=2)


class _Job(NamedTuple):
    """Rows to decode; `[B]` is padded to a power of two with rows without places."""

    size: int  # number of rows requested
    prompts: list[Ids]  # the known beginning of each row, int32 `[T_b]`
    given: Ids  # int32 `[R, B]`, what follows it; `FREE` in places to fill and in padding
    places: Ids  # int32 `[B]`, how many of these places each row has
    keys: Array  # typed keys `[B]`
    filters: Filters
    stops: Stops


class _Chunk(NamedTuple):
    """Tokens and scores `[N, B]` of consecutive places, and the rows' state afterwards, `[B]`."""

    tokens: Ids
    scores: npt.NDArray[np.float32]
    matched: Ids
    stopped: npt.NDArray[np.bool_]


def _prepare(
    model: LanguageModel,
    template: npt.ArrayLike,
    key: Array,
    *,
    lengths: npt.ArrayLike | None = None,
    stops: Sequence[Sequence[int]] = (),
    first_row: int = 0,
    allow_bidirectional: bool = False,
    **filters: Unpack[FilterOptions],
) -> _Job:
    require_key("key", key)
    if not allow_bidirectional:
        refuse_bidirectional(model)
    rows = _rows(model, np.asarray(template), lengths)
    size = len(rows)
    rows += [np.zeros(0, np.int32)] * (power_of_two(size) - size)
    # No prefill: it would show the backward direction a whole prompt, unlike anything in training.
    known = [0 if model.config.bidirectional else prompt_length(row) for row in rows]
    given, places = _stacked([row[k:] for row, k in zip(rows, known, strict=True)])
    return _Job(
        size,
        [row[:k] for row, k in zip(rows, known, strict=True)],
        given,
        places,
        _keys_of_rows(key, first_row, len(rows)),
        make_filters(model.vocabulary_size, **filters),
        make_stops(model.vocabulary_size, stops),
    )


def _rows(
    model: LanguageModel, template: npt.NDArray[np.integer], lengths: npt.ArrayLike | None
) -> list[Ids]:
    check_template(model, template, "[T, B]")
    times, batch_size = template.shape
    ends = np.full(batch_size, times) if lengths is None else np.asarray(lengths)
    fits = ends.shape == (batch_size,) and np.issubdtype(ends.dtype, np.integer)
    if not fits or ends.min() < 1 or ends.max() > times:
        raise ValueError(
            f"lengths are {ends.dtype} of shape {ends.shape}; expected an integer from 1 to "
            f"{times} for each of the {batch_size} rows"
        )
    return [template[:end, row].astype(np.int32) for row, end in enumerate(ends)]


def _chunks(
    model: LanguageModel,
    params: LanguageModelParams,
    job: _Job,
    *,
    places: int | None = None,
    with_scores: bool = False,
) -> Iterator[_Chunk]:
    """Decode in chunks of `places`, or of as many as are left."""
    total = len(job.given)
    if not total:
        return
    size = min(_MOST_PLACES, power_of_two(total)) if places is None else places
    carry, hidden = prefill(model, params, job.prompts)
    # NumPy's arrays, which jit takes faster than `jnp.asarray` would.
    known = np.array([len(prompt) for prompt in job.prompts], np.int32)
    rows = Rows(job.keys, known, job.places)
    seen: Any = np.zeros((len(known), model.vocabulary_size), np.bool_)
    for row, prompt in enumerate(job.prompts):
        seen[row, prompt] = True
    state: Any = np.zeros_like(known)
    place: Any = np.int32(0)
    writing = DecodeState(carry, hidden, seen, state, state.astype(bool), place)
    for first in range(0, total, size):
        times = min(size, total - first)
        given = np.full((size, len(known)), FREE, np.int32)
        given[:times] = job.given[first : first + times]
        writing, tokens, scores = decode(
            model, with_scores, params, writing, rows, given, np.int32(times),
            job.filters, job.stops,
        )  # fmt: skip
        matched, stopped = np.asarray(writing.matched), np.asarray(writing.stopped)
        scored = np.asarray(scores)[:times] if with_scores else np.zeros((0, 0), np.float32)
        yield _Chunk(np.asarray(tokens)[:times], scored, matched, stopped)
        if (stopped | (job.places <= first + times)).all():
            return


def _texts(job: _Job, chunks: list[_Chunk], *, with_scores: bool) -> Texts:
    known = [len(prompt) for prompt in job.prompts[: job.size]]
    times = max(k + p for k, p in zip(known, job.places, strict=False))
    tokens = np.full((times, job.size), FREE, np.int32)
    scores = np.full((times, job.size), np.nan, np.float32)
    lengths, settled = np.array(known, np.int32), list(_settled(job, chunks))
    for row, prompt in enumerate(job.prompts[: job.size]):
        text = np.concatenate([prompt, *(written[row] for written in settled)])
        lengths[row] = len(text)
        tokens[: len(text), row] = text
        if with_scores and chunks:
            scored = np.concatenate([chunk.scores[:, row] for chunk in chunks])
            scores[known[row] : len(text), row] = scored[: len(text) - known[row]]
    stopped = chunks[-1].stopped[: job.size] if chunks else np.zeros(job.size, np.bool_)
    return Texts(tokens, lengths, stopped, scores if with_scores else None)


def _settled(job: _Job, chunks: Iterable[_Chunk]) -> Iterator[list[Ids]]:
    """Yield the tokens of each row that can no longer change, chunk by chunk."""
    held = [np.zeros(0, np.int32) for _ in range(job.size)]
    first = 0
    for chunk in chunks:
        first += len(chunk.tokens)
        found = []
        for row in range(job.size):
            tokens, state = chunk.tokens[:, row], chunk.matched[row]
            tokens = np.concatenate([held[row], tokens[tokens != FREE]])
            if chunk.stopped[row]:
                rest = job.stops.length[state]
            else:
                rest = job.stops.depth[state] if first < job.places[row] else 0
            kept = len(tokens) - int(rest)
            found.append(tokens[:kept])
            held[row] = tokens[kept:]
        yield found

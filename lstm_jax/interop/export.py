"""Export of a trained model with its weights as a StableHLO program, through `jax.export`.

The saved programs need only jax, numpy and flatbuffers, not this library: run them with the `call`
of `jax.export.deserialize(open("sampler.bin", "rb").read())`.

Batch and time are symbolic, so one program takes any size. Arguments and results are arrays;
`exported.in_avals` and `exported.out_avals` have their shapes and dtypes, which `sampler.call`
requires exactly. JAX reads programs written by its own versions of the last six months.

Shapes: T time, B batch, H hidden size, V vocabulary; `t` and `b` are the symbolic time and batch.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, export, random

from lstm_jax.checks import require_count
from lstm_jax.classifier import Classifier, ClassifierParams
from lstm_jax.dropout import keys_of_rows
from lstm_jax.files import write_whole
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling.decode import FREE, DecodeState, Rows, decode, refuse_bidirectional
from lstm_jax.sampling.filters import make_filters
from lstm_jax.sampling.stops import make_stops

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
Platforms = Sequence[Platform] | None


def export_step(
    model: LanguageModel, params: LanguageModelParams, *, platforms: Platforms = None
) -> export.Exported:
    """Export one decoding step: `(carry leaf, ..., token) -> (carry leaf, ..., logits)`.

    The carry's leaves are `[b, H]`, from the lowest layer up; an LSTM has h, then c. Zeros start a
    sequence. `token` is int32 `[b]`; `logits`, before the softmax, are `[b, V]`.

    Args:
        model: a language model; not bidirectional.
        params: its parameters, which become constants of the program.
        platforms: platforms to export for; by default that of this process.

    Raises:
        ValueError: the model is bidirectional, or a platform is unknown.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> exported = interop.export_step(model, model.init(jax.random.key(0)))
        >>> h, c, logits = exported.call(jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.int32([1, 2]))
        >>> logits.shape
        (2, 5)
    """
    refuse_bidirectional(model)
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: model.zero_carry(params, 1)))

    def step(*arguments: Array) -> tuple[Array, ...]:
        *before, token = arguments
        carry, hidden = model.step(params, jax.tree.unflatten(structure, before), token)
        return (*jax.tree.leaves(carry), model.logits(params, hidden))

    (b,) = export.symbolic_shape("b")
    carry = [jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    return _exported(step, platforms, *carry, jax.ShapeDtypeStruct((b,), jnp.int32))


def export_sampler(
    model: LanguageModel,
    params: LanguageModelParams,
    places: int,
    *,
    forbidden: Sequence[int] = (),
    platforms: Platforms = None,
) -> export.Exported:
    """Export generation from prompts: `(prompt, key_data, temperature, top_n) -> tokens`.

        prompt: int32 `[t, b]`; shorter prompts are padded in front with `FREE` (-1).
        key_data: uint32 `[2]`: `jax.random.key_data(key)`, or `[0, seed]` for the key of a small
            seed. The tokens are those that `generate` draws with that key.
        temperature, top_n: float32 and int32 scalars, see `FilterOptions`; unchecked, with values
            below 0 read as 0.
        tokens: int32 `[places, b]`.

    Args:
        model: a language model; not bidirectional.
        params: see `export_step`.
        places: number of tokens to generate.
        forbidden: token ids that are never generated.
        platforms: see `export_step`.

    Raises:
        ValueError: the model is bidirectional, or a platform or another argument is invalid.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> exported = interop.export_sampler(model, model.init(jax.random.key(0)), places=6)
        >>> tokens = exported.call(jnp.int32([[1], [2]]), jnp.uint32([0, 7]), 0.8, jnp.int32(3))
        >>> tokens.shape
        (6, 1)
    """
    refuse_bidirectional(model)
    require_count("places", places)
    filters = make_filters(model.vocabulary_size, forbidden=forbidden)
    stops = make_stops(model.vocabulary_size)

    def sample(prompt_TB: Array, key_data: Array, temperature: Array, top_n: Array) -> Array:
        batch_size, mask_TB = prompt_TB.shape[1], prompt_TB != FREE
        carry = model.zero_carry(params, batch_size)
        carry, hs_TBH = model.hidden(params, carry, prompt_TB, mask=mask_TB)
        key = random.wrap_key_data(key_data, impl="threefry2x32")
        zeros_B = jnp.zeros(batch_size, jnp.int32)
        # Only the repetition penalty, which is off, uses `seen`.
        seen_BV = jnp.zeros((batch_size, model.vocabulary_size), jnp.bool_)
        stopped_B, place = zeros_B.astype(bool), jnp.int32(0)
        writing = DecodeState(carry, hs_TBH[-1], seen_BV, zeros_B, stopped_B, place)
        known_B, keys_B = mask_TB.sum(0, dtype=jnp.int32), keys_of_rows(key, 0, batch_size)
        rows = Rows(keys_B, known_B, zeros_B + places)
        chosen = filters._replace(temperature=temperature, top_n=jnp.maximum(top_n, 0))
        given_NB = jnp.full((places, prompt_TB.shape[1]), FREE, jnp.int32)
        written: tuple[Any, Array, Array] = decode(
            model, False, params, writing, rows, given_NB, jnp.int32(places), chosen, stops
        )
        return written[1]

    prompt = jax.ShapeDtypeStruct(export.symbolic_shape("t, b"), jnp.int32)
    key_data = jax.ShapeDtypeStruct((2,), jnp.uint32)
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32)]
    return _exported(sample, platforms, prompt, key_data, *scalars)


def export_classifier(
    model: Classifier, params: ClassifierParams, *, platforms: Platforms = None
) -> export.Exported:
    """Export a classifier's probability of label 1: `(tokens, mask) -> probability`.

        tokens: int32 `[t, b]`.
        mask: bool `[t, b]`, True = a real token.
        probability: `[b]`.

    `params` and `platforms` are as for `export_step`.

    Raises:
        ValueError: a platform is unknown.

    Examples:
        >>> from lstm_jax import interop
        >>> config = lstm_jax.ClassifierConfig(embedding_size=3, hidden_size=4)
        >>> model = lstm_jax.Classifier(config, 5)
        >>> exported = interop.export_classifier(model, model.init(jax.random.key(0)))
        >>> exported.call(jnp.int32([[1], [2]]), jnp.ones((2, 1), bool)).shape
        (1,)
    """

    def probability(tokens_TB: Array, mask_TB: Array) -> Array:
        return jax.nn.sigmoid(model.logits(params, tokens_TB, mask=mask_TB))

    shape = export.symbolic_shape("t, b")
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
    return _exported(probability, platforms, tokens, mask)


def save_exported(path: str | os.PathLike[str], exported: export.Exported) -> int:
    """Write a program for `jax.export.deserialize` atomically, and return its size in bytes.

    Raises:
        ValueError: flatbuffers, with which JAX writes programs, is not installed.
        OSError: the file cannot be written.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> exported = interop.export_step(model, model.init(jax.random.key(0)))
        >>> size = interop.save_exported("step.bin", exported)
    """
    try:
        data = exported.serialize()
    except ImportError:
        raise ValueError("exporting needs flatbuffers; pip install 'lstm-jax[interop]'") from None
    write_whole(path, data)
    return len(data)


def signature(exported: export.Exported) -> str:
    """Describe arguments and results, for example as `(int32[t,b]) -> (float32[b])`.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> exported = interop.export_step(model, model.init(jax.random.key(0)))
        >>> interop.signature(exported).endswith("float32[b,5])")
        True
    """
    both = (exported.in_avals, exported.out_avals)
    return " -> ".join(f"({', '.join(aval.str_short() for aval in avals)})" for avals in both)


def _exported(
    function: Callable[..., Any], platforms: Platforms, *arguments: jax.ShapeDtypeStruct
) -> export.Exported:
    choices = get_args(Platform)
    for platform in platforms or ():
        if platform not in choices:
            raise ValueError(f"platform is {platform!r}; choose from {', '.join(choices)}")
    return export.export(jax.jit(function), platforms=platforms or None)(*arguments)

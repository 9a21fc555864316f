"""Keras on JAX: its layers through `stateless_call`, trained with Optax."""

import os
from functools import cache
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # chosen at import

import jax
import jax.numpy as jnp
import keras
from jax import Array, random

from bench.peers import Implementation, LayerPass, Training
from bench.peers.on_jax import Loss, Parts, cast, layer_pass, optax_training, stacked_loss, stored
from bench.shapes import AnyParams, AnySystem, DType, LayerShape, System
from lstm_jax.cells import CellName
from lstm_jax.interop.keras import layer_to_keras
from lstm_jax.models import LanguageModelParams, output_layer


class Peer(Implementation):
    """Keras's layers in one jitted step; they are stateless, with the carry passed in and out."""

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        if not (isinstance(system, System) and isinstance(params, LanguageModelParams)):
            raise ValueError(f"no {system.name} are built for Keras")
        settings = {
            "input": "one_hot" if system.embedding_size is None else "layers.Embedding",
            "step": "stateless_call and Optax in one jax.jit, state donated",
            "carry": "initial_state and return_state, stateful=False",
            "inputs": "batch-major",
        }
        # Its GRU has two biases each for r and z.
        beyond = system.layers * 2 * system.hidden_size if system.cell == "gru" else 0
        weights = _weights(system, params)
        return optax_training(system, _loss(system, dtype), weights, settings, beyond)

    def layer(self, shape: LayerShape, dtype: DType) -> LayerPass:
        """See `Implementation`; inputs are batch-major, its native layout."""
        sizes, work = (shape.input_size, shape.hidden_size), shape.work()
        (params, initial), kind = work.only, stored(dtype)
        layer = _recurrent(shape.cell, kind, *sizes, return_state=False)
        fixed = [variable.value for variable in layer.non_trainable_variables]

        def forward(weights: Any, carry: Any, xs: Array) -> Array:
            weights, carry, xs = cast((weights, carry, xs), kind)
            return layer.stateless_call(weights, fixed, xs, initial_state=carry)[0]

        def named(weights: Any, carry: Any, xs: Any) -> dict[str, Any]:
            found = {"xs": xs} | dict(zip("hc", carry, strict=False))
            w_x, w_h, b = weights
            if shape.cell == "gru":
                w_x, w_h, b = map(_in_our_order, (w_x, w_h, b))
                found["b_hn"] = b[1, -shape.hidden_size :]
                b = b[0]
            return found | {"w_x": w_x, "w_h": w_h, "b": b}

        inputs = (layer_to_keras(params), list(initial), work.xs)
        settings = {"call": "stateless_call", "inputs": "batch-major"}
        return layer_pass(forward, inputs, work.dys, named, settings, dtype, batch_major=True)


def _recurrent(cell: CellName, dtype: str, inputs: int, size: int, *, return_state: bool) -> Any:
    """A layer whose own weights are not used.

    The policy "mixed_bfloat16" mixes dtypes in the GRU's loop and fails, so weights are cast before
    the call.
    """
    kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
    how: Any = {"return_state": return_state, "dtype": dtype}
    how["recurrent_initializer"] = "zeros"  # its default cannot be drawn in bfloat16
    layer = kind(size, return_sequences=True, **how)
    layer.build((None, None, inputs))
    return layer


def _in_our_order(array: Any) -> Any:
    """Reorder a GRU's gates from z, r, h to r, z, n."""
    first, second, third = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([second, first, third], axis=-1)


def _weights(system: System, params: LanguageModelParams) -> dict[str, Any]:
    """Our weights; a tied output layer only has a bias."""
    output = output_layer(params)
    found: dict[str, Any] = {
        "recurrent": [layer_to_keras(layer) for layer in params.layers],
        "output": [output.b] if system.tied else [output.w, output.b],
    }
    if params.embedding is not None:
        found["embedding"] = [params.embedding]
    return jax.tree.map(jnp.copy, found)


@cache
def _loss(system: System, dtype: DType) -> Loss:
    """Cached, because compiled code is found by its identity; each call passes the weights."""
    size, vocabulary_size = system.hidden_size, system.vocabulary_size
    embedding = None
    if system.embedding_size is not None:
        embedding = keras.layers.Embedding(vocabulary_size, system.embedding_size, dtype=dtype)
        embedding.build((None, None))
    recurrent = [
        _recurrent(system.cell, dtype, inputs, size, return_state=True)
        for inputs in [system.input_size] + [size] * (system.layers - 1)
    ]
    output = keras.layers.Dense(vocabulary_size, dtype=dtype)
    output.build((None, None, size))
    fixed = [[each.value for each in layer.non_trainable_variables] for layer in recurrent]

    def drop(rate: float, xs: Array, key: Array, at_all_times: bool) -> Array:
        noise = (xs.shape[0], 1, xs.shape[2]) if at_all_times else None
        dropout = keras.layers.Dropout(rate, noise_shape=noise, dtype=dtype)
        seed = [random.bits(key, (2,), jnp.uint32)]
        return dropout.stateless_call([], seed, xs, training=True)[0]

    def inputs(weights: Any, tokens: Array) -> Array:
        if embedding is None:
            return keras.ops.one_hot(tokens, vocabulary_size, dtype=dtype)
        return embedding.stateless_call(weights["embedding"], [], tokens)[0]

    def logits(weights: Any, hs: Array) -> Array:
        tied = [weights["embedding"][0].T] if system.tied else []
        return output.stateless_call([*tied, *weights["output"]], [], hs)[0]

    def layer(index: int, weights: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
        state = list(carry) if system.cell == "lstm" else [carry]
        given = (weights["recurrent"][index], fixed[index], xs)
        (ys, *final), _ = recurrent[index].stateless_call(*given, initial_state=state)
        final = cast(final, "float32")
        return tuple(final) if system.cell == "lstm" else final[0], ys

    parts = Parts(inputs, layer, drop, logits)
    return stacked_loss(system, parts, lambda *given: cast(given, dtype), batch_major=True)

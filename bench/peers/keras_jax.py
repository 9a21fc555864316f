"""Keras on JAX: its layers through `stateless_call`, trained with Optax."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from bench.peers import keras_parts as parts
from bench.peers.optax_training import OptaxTraining, Program, make_optimizer, token_loss
from bench.shapes import AnyParams, AnySystem, DType, System
from lstm_jax.models import LanguageModelParams, output_layer


class KerasJax:
    """Keras's layers in one jitted step; their carry goes in and comes out, none is stateful."""

    name = "keras"

    def build(self, system: AnySystem, dtype: DType, params: AnyParams) -> OptaxTraining:
        """See `Implementation`."""
        parts.require_jax()
        if not isinstance(system, System):
            raise ValueError(f"no {system.name} are built for Keras")
        assert isinstance(params, LanguageModelParams)
        # Its GRU has both of the biases of r and z.
        beyond = system.layers * 2 * system.hidden_size if system.cell == "gru" else 0
        return OptaxTraining(
            system,
            _make_program(system, dtype),
            _weights(system, params),
            lambda: _zero_carry(system),
            {
                "input": "one_hot" if system.embedding_size is None else "layers.Embedding",
                "step": "stateless_call and Optax in one jax.jit, state donated",
                "carry": "initial_state and return_state, stateful=False",
                "inputs": "batch-major",
            },
            beyond,
        )


PEER = KerasJax()


class _Layers:
    """The system's layers, whose own weights are not used: each call is given some."""

    def __init__(self, system: System, dtype: DType) -> None:
        self.embedding = None
        if system.embedding_size is not None:
            sizes = (system.vocabulary_size, system.embedding_size)
            self.embedding = parts.keras.layers.Embedding(*sizes, dtype=dtype)
            self.embedding.build((None, None))
        size = system.hidden_size
        self.recurrent = [
            parts.make_recurrent(system.cell, dtype, inputs, size, return_state=True)
            for inputs in [system.input_size] + [size] * (system.layers - 1)
        ]
        self.output = parts.keras.layers.Dense(system.vocabulary_size, dtype=dtype)
        self.output.build((None, None, size))


def _weights(system: System, params: LanguageModelParams) -> dict[str, Any]:
    """Our weights; those of a tied output layer are its bias alone."""
    output = output_layer(params)
    found: dict[str, Any] = {
        "recurrent": [parts.recurrent_weights(layer) for layer in params.layers],
        "output": [output.b] if system.tied else [output.w, output.b],
    }
    if params.embedding is not None:
        found["embedding"] = [params.embedding]
    copied: dict[str, Any] = jax.tree.map(jnp.copy, found)
    return copied


def _zero_carry(system: System) -> list[Any]:
    def zeros() -> Array:
        return jnp.zeros((system.batch_size, system.hidden_size))

    parts_of_carry = 2 if system.cell == "lstm" else 1
    return [[zeros() for _ in range(parts_of_carry)] for _ in range(system.layers)]


@cache
def _make_program(system: System, dtype: DType) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    layers = _Layers(system, dtype)
    fixed = [[each.value for each in layer.non_trainable_variables] for layer in layers.recurrent]
    at_inputs = system.dropout_place == "inputs"

    def drop(rate: float, xs: Array, key: Array | None, *, all_times: bool = False) -> Array:
        if key is None or not rate:
            return xs
        noise = (xs.shape[0], 1, xs.shape[2]) if all_times else None
        dropout = parts.keras.layers.Dropout(rate, noise_shape=noise, dtype=dtype)
        seed = [random.bits(key, (2,), jnp.uint32)]
        dropped: Array = dropout.stateless_call([], seed, xs, training=True)[0]
        return dropped

    def inputs(weights: Any, tokens: Array) -> Array:
        if layers.embedding is None:
            one_hot: Array = parts.keras.ops.one_hot(tokens, system.vocabulary_size, dtype=dtype)
            return one_hot
        embedded: Array = layers.embedding.stateless_call(weights["embedding"], [], tokens)[0]
        return embedded

    def logits(weights: Any, hs: Array) -> Array:
        output = weights["output"]
        if system.tied:
            output = [weights["embedding"][0].T, *output]
        found: Array = layers.output.stateless_call(output, [], hs)[0].astype(jnp.float32)
        return found

    def forward(
        weights: Any, carry: Any, tokens: Array, key: Array | None
    ) -> tuple[list[Any], Array]:
        weights, carry = parts.cast((weights, carry), dtype)
        keys = [None] * (system.layers + 1) if key is None else random.split(key, system.layers + 1)
        xs, finals = inputs(weights, tokens), []
        for index, layer in enumerate(layers.recurrent):
            if at_inputs:
                xs = drop(system.dropout, xs, keys[index], all_times=True)
            given = (weights["recurrent"][index], fixed[index], xs)
            (xs, *final), _ = layer.stateless_call(*given, initial_state=carry[index])
            if not at_inputs:
                xs = drop(system.dropout, xs, keys[index])
            finals.append(parts.cast(final, "float32"))
        return finals, logits(weights, drop(system.output_dropout, xs, keys[-1]))

    return Program(token_loss(forward, batch_major=True), make_optimizer(system))

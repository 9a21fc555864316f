"""Flax: `nnx.RNN` around `OptimizedLSTMCell` or `GRUCell`, trained with Optax."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from bench.implementation import Training
from bench.peers import flax_nnx_parts as parts
from bench.peers.flax_nnx_reviews import train_reviews
from bench.peers.optax_training import OptaxTraining, Program, make_optimizer, token_loss
from bench.shapes import AnyParams, AnySystem, Classification, DType, System
from lstm_jax.classifier import ClassifierParams
from lstm_jax.models import LanguageModelParams, output_layer


class FlaxNnx:
    """Flax as its performance guide has it: `jax.jit` over split state, donated."""

    name = "flax-nnx"

    def build(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        """See `Implementation`."""
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            return train_reviews(system, dtype, params)
        assert isinstance(params, LanguageModelParams)
        network = make_network(system, dtype)
        # Its GRU lacks the bias inside the reset product.
        lacking = system.layers * system.hidden_size if system.cell == "gru" else 0
        return OptaxTraining(
            system,
            network.program,
            load(network, params),
            lambda: zero_carry(system, system.batch_size),
            {
                "cell": type(network.module().layers[0].cell).__name__,
                "input": "one_hot" if system.embedding_size is None else "nnx.Embed",
                "jit": "jax.jit over split state, donated",
            },
            -lacking,
        )


PEER = FlaxNnx()


class Network(nnx.Module):
    """Tokens `[T, B]` -> logits `[T, B, V]`."""

    def __init__(self, system: System, dtype: DType, rngs: nnx.Rngs) -> None:
        compute = jnp.dtype(dtype)
        self.system, self.dtype = system, compute
        if system.embedding_size is not None:
            sizes = (system.vocabulary_size, system.embedding_size)
            self.embedding = nnx.Embed(*sizes, dtype=compute, rngs=rngs)
        size = system.hidden_size
        self.layers = nnx.List(
            parts.make_rnn(system.cell, inputs, size, compute, rngs)
            for inputs in [system.input_size] + [size] * (system.layers - 1)
        )
        at_inputs = system.dropout_place == "inputs"
        self.input_dropout = nnx.Dropout(system.dropout if at_inputs else 0.0, broadcast_dims=(0,))
        self.dropout = nnx.Dropout(0.0 if at_inputs else system.dropout)
        self.output_dropout = nnx.Dropout(system.output_dropout)
        if system.tied:
            self.output_bias = nnx.Param(jnp.zeros(system.vocabulary_size))
        else:
            self.output = nnx.Linear(size, system.vocabulary_size, dtype=compute, rngs=rngs)

    def logits(self, hs: Array) -> Array:
        """The output layer."""
        if self.system.tied:
            return self.embedding.attend(hs).astype(jnp.float32) + self.output_bias[...]
        logits: Array = self.output(hs).astype(jnp.float32)
        return logits

    def inputs(self, tokens: Array) -> Array:
        """What enters the first layer."""
        if self.system.embedding_size is not None:
            xs: Array = self.embedding(tokens)
            return xs
        return jax.nn.one_hot(tokens, self.system.vocabulary_size, dtype=self.dtype)

    def hidden(
        self, tokens: Array, carry: tuple[Any, ...], dropout_key: Array | None
    ) -> tuple[tuple[Any, ...], Array]:
        """All but the output layer; a key switches dropout on."""
        xs = self.inputs(tokens)
        rngs = None if dropout_key is None else nnx.Rngs(dropout_key)
        finals = []
        for layer, before in zip(self.layers, carry, strict=True):
            xs = self.input_dropout(xs, deterministic=rngs is None, rngs=rngs)
            final, xs = layer(xs, initial_carry=before)
            xs = self.dropout(xs, deterministic=rngs is None, rngs=rngs)
            finals.append(final)
        return tuple(finals), self.output_dropout(xs, deterministic=rngs is None, rngs=rngs)


class CompiledNetwork(NamedTuple):
    """What is compiled: the network's form, and how it is trained."""

    system: System
    graph: Any
    program: Program

    def module(self) -> Any:
        """The network without numbers."""
        return nnx.eval_shape(lambda: Network(self.system, "float32", nnx.Rngs(0)))


@cache
def make_network(system: System, dtype: DType) -> CompiledNetwork:
    """Cached, because compiled code is found again by the program's identity."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Network(system, dtype, nnx.Rngs(0))))
    drops = bool(system.dropout or system.output_dropout)

    def forward(
        weights: Any, carry: Any, tokens: Array, key: Array | None
    ) -> tuple[tuple[Any, ...], Array]:
        network = nnx.merge(graph, weights)
        carry, hs = network.hidden(tokens, carry, key if drops else None)
        return carry, network.logits(hs)

    return CompiledNetwork(system, graph, Program(token_loss(forward), make_optimizer(system)))


def load(network: CompiledNetwork, params: LanguageModelParams) -> Any:
    """Our weights as the network's state."""
    output = output_layer(params)
    layers = {
        index: {"cell": parts.cell_weights(layer)} for index, layer in enumerate(params.layers)
    }
    weights: dict[str, Any] = {"layers": layers}
    if network.system.tied:
        weights["output_bias"] = output.b
    else:
        weights["output"] = {"kernel": output.w, "bias": output.b}
    if params.embedding is not None:
        weights["embedding"] = {"embedding": params.embedding}
    return parts.with_weights(network.module(), weights)


def zero_carry(system: System, batch_size: int) -> tuple[Any, ...]:
    """What every layer starts from."""
    size = system.hidden_size
    return tuple(parts.zero_carry(system.cell, batch_size, size) for _ in range(system.layers))

"""Flax's classifier of texts: word vectors, `nnx.RNN` on `nnx.RNN`, a ReLU layer, a logit."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, random

from bench.peers import flax_nnx_parts as parts
from bench.peers.optax_training import OptaxTraining, Program, make_optimizer
from bench.shapes import Classification, DType
from lstm_jax.classifier import ClassifierParams


class Network(nnx.Module):
    """Words `[T, B]` -> logits `[B]`."""

    def __init__(self, system: Classification, dtype: DType, rngs: nnx.Rngs) -> None:
        compute, size = jnp.dtype(dtype), system.hidden_size
        self.system = system
        self.learnt = nnx.Param(jnp.zeros((system.vocabulary_size, system.embedding_size)))
        self.layers = nnx.List(
            parts.make_rnn("lstm", inputs, size, compute, rngs)
            for inputs in [system.embedding_size] + [size] * (system.layers - 1)
        )
        self.dense = nnx.Linear(size, system.dense_size, dtype=compute, rngs=rngs)
        self.output = nnx.Linear(system.dense_size, 1, dtype=compute, rngs=rngs)
        self.input_dropout = nnx.Dropout(system.dropout, broadcast_dims=(0,))
        self.dense_dropout = nnx.Dropout(system.dense_dropout)

    def __call__(self, words: Array, vectors: Array, key: Array | None) -> Array:
        """Runs it; a key switches dropout on."""
        system = self.system
        rngs = None if key is None else nnx.Rngs(key)
        is_missing = jnp.all(vectors == 0, axis=1, keepdims=True)
        xs = jnp.where(is_missing, self.learnt[...], vectors)[words]
        if key is not None and system.word_dropout:
            kept = random.bernoulli(random.fold_in(key, 1), 1 - system.word_dropout, words.shape)
            xs *= kept[..., None]
        h: Any = None
        for layer in self.layers:
            xs = self.input_dropout(xs, deterministic=rngs is None, rngs=rngs)
            carry = parts.zero_carry("lstm", words.shape[1], system.hidden_size)
            (_, h), xs = layer(xs, initial_carry=carry)
        features = jax.nn.relu(self.dense(h))
        features = self.dense_dropout(features, deterministic=rngs is None, rngs=rngs)
        logits: Array = self.output(features)[:, 0].astype(jnp.float32)
        return logits


def train_reviews(system: Classification, dtype: DType, params: ClassifierParams) -> OptaxTraining:
    """See `Implementation.build`."""
    network = _make_network(system, dtype)
    assert params.dense is not None
    weights = {
        "learnt": params.embedding,
        "layers": {i: {"cell": parts.cell_weights(each)} for i, each in enumerate(params.layers)},
        "dense": {"kernel": params.dense.w, "bias": params.dense.b},
        "output": {"kernel": params.output.w, "bias": params.output.b},
    }
    settings = {"cell": "OptimizedLSTMCell", "jit": "jax.jit over split state, donated"}
    loaded = parts.with_weights(network.module, weights)
    vectors = jnp.asarray(system.vectors())
    return OptaxTraining(system, network.program, loaded, lambda: (), settings, shared=(vectors,))


class _Compiled(NamedTuple):
    module: Any
    program: Program


@cache
def _make_network(system: Classification, dtype: DType) -> _Compiled:
    module = nnx.eval_shape(lambda: Network(system, dtype, nnx.Rngs(0)))
    graph = nnx.graphdef(module)
    drops = bool(system.dropout or system.word_dropout or system.dense_dropout)

    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        words, labels, vectors = batch
        with jax.default_matmul_precision("highest"):
            logits = nnx.merge(graph, weights)(words, vectors, key if drops else None)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), carry

    return _Compiled(module, Program(loss, make_optimizer(system)))

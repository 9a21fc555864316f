"""Flax: `nnx.RNN` around `OptimizedLSTMCell` or `GRUCell`, trained with Optax."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax, random

from bench.implementation import Implementation
from bench.peers.on_jax import (
    JaxLayerPass,
    Loss,
    OptaxTraining,
    Parts,
    hidden,
    stacked_loss,
    zero_carry,
)
from bench.shapes import (
    AnyParams,
    AnySystem,
    Classification,
    DType,
    Job,
    LayerShape,
    LayerWork,
    System,
)
from lstm_jax.cells import CellName, LSTMParams
from lstm_jax.classifier import ClassifierParams
from lstm_jax.models import LanguageModelParams, output_layer

_JIT = "jax.jit over split state, donated"


class Peer(Implementation):
    """Flax as its performance guide has it: `jax.jit` over split state, donated."""

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> OptaxTraining:
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            return _reviews_training(system, dtype, params)
        assert isinstance(params, LanguageModelParams)
        made = _made(system, dtype)
        settings = {
            "cell": type(made.module.layers[0].cell).__name__,
            "input": "one_hot" if system.embedding_size is None else "nnx.Embed",
            "jit": _JIT,
        }
        # Its GRU lacks the bias inside the reset product.
        lacking = system.layers * system.hidden_size if system.cell == "gru" else 0
        weights = _with_weights(made.module, _weights(system, params))
        return OptaxTraining(system, made.loss, weights, settings, -lacking)

    def layer(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        sizes = (shape.input_size, shape.hidden_size)
        module: nnx.RNN = nnx.eval_shape(
            lambda: _make_rnn(shape.cell, *sizes, jnp.dtype(dtype), nnx.Rngs(0))
        )
        graph = nnx.graphdef(module)

        def forward(weights: Any, carry: Any, xs: Array) -> Array:
            ys: Array = nnx.merge(graph, weights)(xs, initial_carry=carry)[1]
            return ys

        def named(weights: Any, carry: Any, xs: Any) -> dict[str, Any]:
            dense_i, dense_h = (weights["cell"][name] for name in ("dense_i", "dense_h"))
            bias = (dense_h if shape.cell == "lstm" else dense_i)["bias"]
            parts = dict(zip("ch", carry, strict=True)) if shape.cell == "lstm" else {"h": carry}
            found = {"xs": xs, "w_x": dense_i["kernel"], "w_h": dense_h["kernel"], "b": bias}
            return {name: _array(each) for name, each in (found | parts).items()}

        weights = _with_weights(module, {"cell": _cell_weights(work.params)})
        carry = (work.carry.c, work.carry.h) if shape.cell == "lstm" else work.carry.h
        settings = {"cell": type(module.cell).__name__}
        return JaxLayerPass(forward, (weights, carry, work.xs), work.dys, named, settings)

    def sampling(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> FlaxSampling:
        return FlaxSampling(system, dtype, params, job)


def _make_rnn(cell: CellName, inputs: int, size: int, compute: Any, rngs: nnx.Rngs) -> nnx.RNN:
    """`nnx.RNN` around the cell that is fastest of its kind."""
    kind: Any = nnx.OptimizedLSTMCell if cell == "lstm" else nnx.GRUCell
    made = kind(inputs, size, dtype=compute, rngs=rngs)
    return nnx.RNN(made, time_major=True, return_carry=True, rngs=False)


def _cell_weights(layer: Any) -> dict[str, Any]:
    """Our layer's weights by the cell's names."""
    kernels = {"dense_i": {"kernel": layer.w_x}, "dense_h": {"kernel": layer.w_h}}
    kernels["dense_h" if isinstance(layer, LSTMParams) else "dense_i"]["bias"] = layer.b
    return kernels


def _layer_weights(params: Any) -> dict[int, Any]:
    return {index: {"cell": _cell_weights(layer)} for index, layer in enumerate(params.layers)}


def _with_weights(module: Any, weights: dict[str, Any]) -> Any:
    """The parameters of a module without numbers, with copies of these."""
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.copy, weights))
    return state


def _array(value: Any) -> Any:
    return value[...] if isinstance(value, nnx.Variable) else value


class LanguageNetwork(nnx.Module):
    """Tokens `[T, B]` -> logits `[T, B, V]`."""

    def __init__(self, system: System, dtype: DType, rngs: nnx.Rngs) -> None:
        compute = jnp.dtype(dtype)
        self.system, self.dtype = system, compute
        if system.embedding_size is not None:
            sizes = (system.vocabulary_size, system.embedding_size)
            self.embedding = nnx.Embed(*sizes, dtype=compute, rngs=rngs)
        size = system.hidden_size
        self.layers = nnx.List(
            _make_rnn(system.cell, inputs, size, compute, rngs)
            for inputs in [system.input_size] + [size] * (system.layers - 1)
        )
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


def _drop(rate: float, xs: Array, key: Array, at_all_times: bool) -> Array:
    dropout = nnx.Dropout(rate, broadcast_dims=(0,) if at_all_times else ())
    dropped: Array = dropout(xs, deterministic=False, rngs=nnx.Rngs(key))
    return dropped


_PARTS = Parts(
    inputs=LanguageNetwork.inputs,
    layer=lambda index, network, carry, xs: network.layers[index](xs, initial_carry=carry),
    drop=_drop,
    logits=LanguageNetwork.logits,
)


class ReviewsNetwork(nnx.Module):
    """Words `[T, B]` -> logits `[B]`."""

    def __init__(self, system: Classification, dtype: DType, rngs: nnx.Rngs) -> None:
        compute, size = jnp.dtype(dtype), system.hidden_size
        self.system = system
        self.learnt = nnx.Param(jnp.zeros((system.vocabulary_size, system.embedding_size)))
        self.layers = nnx.List(
            _make_rnn("lstm", inputs, size, compute, rngs)
            for inputs in [system.embedding_size] + [size] * (system.layers - 1)
        )
        self.dense = nnx.Linear(size, system.dense_size, dtype=compute, rngs=rngs)
        self.output = nnx.Linear(system.dense_size, 1, dtype=compute, rngs=rngs)
        self.input_dropout = nnx.Dropout(system.dropout, broadcast_dims=(0,))
        self.dense_dropout = nnx.Dropout(system.dense_dropout)

    def __call__(self, words: Array, vectors: Array, key: Array | None) -> Array:
        """Runs it; a key switches dropout on."""
        rngs = None if key is None else nnx.Rngs(key)
        how: dict[str, Any] = {"deterministic": rngs is None, "rngs": rngs}
        is_missing = jnp.all(vectors == 0, axis=1, keepdims=True)
        xs = jnp.where(is_missing, self.learnt[...], vectors)[words]
        if key is not None and self.system.word_dropout:
            share = 1 - self.system.word_dropout
            xs *= random.bernoulli(random.fold_in(key, 1), share, words.shape)[..., None]
        h: Any = None
        for layer in self.layers:
            zeros = jnp.zeros((words.shape[1], self.system.hidden_size))
            (_, h), xs = layer(self.input_dropout(xs, **how), initial_carry=(zeros, zeros))
        features = self.dense_dropout(jax.nn.relu(self.dense(h)), **how)
        logits: Array = self.output(features)[:, 0].astype(jnp.float32)
        return logits


class _Made(NamedTuple):
    """A network without numbers, its form, and its loss."""

    module: Any
    graph: Any
    loss: Loss


@cache
def _made(system: AnySystem, dtype: DType) -> _Made:
    """Cached, because compiled code is found again by the loss's identity."""
    kind: Any = ReviewsNetwork if isinstance(system, Classification) else LanguageNetwork
    module: Any = nnx.eval_shape(lambda: kind(system, dtype, nnx.Rngs(0)))
    graph = nnx.graphdef(module)
    if isinstance(system, Classification):
        return _Made(module, graph, _reviews_loss(system, graph))

    def prepared(weights: Any, carry: Any) -> Any:
        return nnx.merge(graph, weights), carry

    return _Made(module, graph, stacked_loss(system, _PARTS, prepared))


def _weights(system: System, params: LanguageModelParams) -> dict[str, Any]:
    """Our weights by the network's names."""
    output = output_layer(params)
    weights: dict[str, Any] = {"layers": _layer_weights(params)}
    if system.tied:
        weights["output_bias"] = output.b
    else:
        weights["output"] = {"kernel": output.w, "bias": output.b}
    if params.embedding is not None:
        weights["embedding"] = {"embedding": params.embedding}
    return weights


def _reviews_training(
    system: Classification, dtype: DType, params: ClassifierParams
) -> OptaxTraining:
    made = _made(system, dtype)
    assert params.dense is not None
    weights = {
        "learnt": params.embedding,
        "layers": _layer_weights(params),
        "dense": {"kernel": params.dense.w, "bias": params.dense.b},
        "output": {"kernel": params.output.w, "bias": params.output.b},
    }
    settings = {"cell": "OptimizedLSTMCell", "jit": _JIT}
    loaded, vectors = _with_weights(made.module, weights), jnp.asarray(system.vectors())
    return OptaxTraining(system, made.loss, loaded, settings, shared=(vectors,))


def _reviews_loss(system: Classification, graph: Any) -> Loss:
    drops = bool(system.dropout or system.word_dropout or system.dense_dropout)

    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        words, labels, vectors = batch
        with jax.default_matmul_precision("highest"):
            logits = nnx.merge(graph, weights)(words, vectors, key if drops else None)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), carry

    return loss


class FlaxSampling:
    """See `Sampling`: one jitted step, called from Python, its state donated."""

    settings: Mapping[str, str] = {"loop": "one jitted step a token, state donated"}

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams, job: Job) -> None:
        made = _made(system, dtype)
        loaded = _with_weights(made.module, _weights(system, params))
        # Leaves, since flattening an `nnx.State` at every call costs as much as a small step.
        leaves, form = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.astype(dtype), loaded))
        self._weights = tuple(leaves)
        top_n = min(job.top_n, system.vocabulary_size)
        self._how = _How(made.graph, form, job.temperature, top_n)
        self._zeros = partial(zero_carry, system, job.batch)
        self._places, self._prompts = job.places, jnp.asarray(job.prompts(system))

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        state = _State(self._zeros(), random.key(0))
        token, state = _absorb(self._how, self._weights, state, self._prompts)
        written = [token]
        for _ in range(1, self._places):
            token, state = _step(self._how, self._weights, state, token)
            written.append(token)
        return np.stack(jax.device_get(written))


class _How(NamedTuple):
    """What is compiled."""

    graph: Any
    form: Any
    temperature: float
    top_n: int

    def network(self, weights: tuple[Array, ...]) -> LanguageNetwork:
        network: LanguageNetwork = nnx.merge(self.graph, jax.tree.unflatten(self.form, weights))
        return network


class _State(NamedTuple):
    carry: list[Any]
    key: Array


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _absorb(
    how: _How, weights: tuple[Array, ...], state: _State, tokens: Array
) -> tuple[Array, _State]:
    network = how.network(weights)
    with jax.default_matmul_precision("highest"):
        carry, hs = hidden(network.system, _PARTS, network, state.carry, tokens, None)
        logits = network.logits(hs[-1])
    return _chosen(how, state._replace(carry=carry), logits)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    how: _How, weights: tuple[Array, ...], state: _State, token: Array
) -> tuple[Array, _State]:
    network = how.network(weights)
    with jax.default_matmul_precision("highest"):
        x, carries = network.inputs(token), []
        for layer, carry in zip(network.layers, state.carry, strict=True):
            carry, x = layer.cell(carry, x)
            carries.append(carry)
        logits = network.logits(x)
    return _chosen(how, state._replace(carry=carries), logits)


def _chosen(how: _How, state: _State, logits: Array) -> tuple[Array, _State]:
    logits = logits.astype(jnp.float32)
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), state
    key, use = random.split(state.key)
    logits, state = logits / how.temperature, state._replace(key=key)
    if not how.top_n:
        return random.categorical(use, logits).astype(jnp.int32), state
    values, ids = lax.top_k(logits, how.top_n)
    drawn = random.categorical(use, values)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0], state

"""Flax: `nnx.RNN` around `OptimizedLSTMCell` or `GRUCell`, trained with Optax."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax, random

from bench import shapes
from bench.peers import Implementation, LayerPass, Training, on_jax
from bench.peers.on_jax import Loss
from bench.shapes import AnyParams, AnySystem, Classification, DType, StoredDType, System
from bench.workers import Built
from lstm_jax.cells import CellName
from lstm_jax.classifier import ClassifierParams
from lstm_jax.interop.flax import params_to_nnx
from lstm_jax.models import LanguageModelParams, output_layer

_JIT = "jax.jit over split state, donated"


class Peer(Implementation):
    """Flax as in its performance guide: `jax.jit` over split, donated state."""

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        module, _, loss = _made(system, dtype)
        settings = {"cell": type(module.layers[0].cell).__name__, "jit": _JIT}
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            loaded, vectors = _reviews_weights(module, params), jnp.asarray(system.vectors())
            return on_jax.optax_training(system, loss, loaded, settings, shared=(vectors,))
        assert isinstance(params, LanguageModelParams)
        settings["input"] = "one_hot" if system.embedding_size is None else "nnx.Embed"
        # Its GRU lacks the bias inside the reset product.
        lacking = system.layers * system.hidden_size if system.cell == "gru" else 0
        weights = _weights(module, system, params)
        return on_jax.optax_training(system, loss, weights, settings, -lacking)

    def layer(self, shape: shapes.LayerShape, dtype: DType) -> LayerPass:
        sizes, is_lstm = (shape.input_size, shape.hidden_size), shape.cell == "lstm"
        compute = jnp.dtype(on_jax.stored(dtype))
        module: nnx.RNN = nnx.eval_shape(
            lambda: _make_rnn(shape.cell, *sizes, compute, nnx.Rngs(0))
        )
        graph, work = nnx.graphdef(module), shape.work()
        params, initial = work.only

        def forward(weights: Any, carry: Any, xs: Array) -> Array:
            return nnx.merge(graph, weights)(xs, initial_carry=carry)[1]

        def named(weights: Any, carry: Any, xs: Any) -> dict[str, Any]:
            dense_i, dense_h = (weights["cell"][name] for name in ("dense_i", "dense_h"))
            bias = (dense_h if is_lstm else dense_i)["bias"]
            found = {"w_x": dense_i["kernel"], "w_h": dense_h["kernel"], "b": bias}
            parts = dict(zip("ch", carry, strict=True)) if is_lstm else {"h": carry}
            return {name: each[...] for name, each in (found | parts | {"xs": xs}).items()}

        weights = _with_weights(module, {"cell": params_to_nnx(params)})
        carry = (initial.c, initial.h) if is_lstm else initial.h
        inputs, settings = (weights, carry, work.xs), {"cell": type(module.cell).__name__}
        return on_jax.layer_pass(forward, inputs, work.dys, named, settings, dtype)

    def sampling(
        self, system: System, dtype: StoredDType, params: LanguageModelParams, job: shapes.Job
    ) -> Built:
        """One jitted step with donated state, called from Python."""
        module, graph, _ = _made(system, dtype)
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), _weights(module, system, params))
        # Leaves, since flattening an `nnx.State` per call costs as much as a small step.
        leaves, form = jax.tree.flatten(cast)
        prompts = jnp.asarray(job.prompts(system))

        def network_of(leaves: list[Array]) -> LanguageNetwork:
            return nnx.merge(graph, jax.tree.unflatten(form, leaves))

        @partial(jax.jit, donate_argnums=(1, 2))
        def absorb(leaves: list[Array], carries: Any, key: Array, tokens: Array) -> Any:
            network = network_of(leaves)
            with jax.default_matmul_precision("highest"):
                carries, hs = on_jax.hidden(system, _PARTS, network, carries, tokens, None)
                logits = network.logits(hs[-1])
            return carries, *_chosen(job, key, logits)

        @partial(jax.jit, donate_argnums=(1, 2))
        def step(leaves: list[Array], carries: Any, key: Array, token: Array) -> Any:
            network = network_of(leaves)
            with jax.default_matmul_precision("highest"):
                x, after = network.inputs(token), []
                for layer, carry in zip(network.layers, carries, strict=True):
                    carry, x = layer.cell(carry, x)
                    after.append(carry)
                logits = network.logits(x)
            return after, *_chosen(job, key, logits)

        def write() -> np.ndarray[Any, np.dtype[np.int32]]:
            carries: Any = on_jax.zero_carry(system, job.batch)
            carries, token, key = absorb(leaves, carries, random.key(0), prompts)
            written = [token]
            for _ in range(1, job.places):
                carries, token, key = step(leaves, carries, key, token)
                written.append(token)
            return np.stack(jax.device_get(written))

        return Built({"write": write}, {"loop": "one jitted step a token, state donated"})


def _make_rnn(cell: CellName, inputs: int, size: int, compute: Any, rngs: nnx.Rngs) -> nnx.RNN:
    kind: Any = nnx.OptimizedLSTMCell if cell == "lstm" else nnx.GRUCell
    made = kind(inputs, size, dtype=compute, rngs=rngs)
    return nnx.RNN(made, time_major=True, return_carry=True, rngs=False)


def _layer_weights(params: Any) -> dict[int, Any]:
    return {index: {"cell": params_to_nnx(layer)} for index, layer in enumerate(params.layers)}


def _with_weights(module: Any, weights: dict[str, Any]) -> Any:
    """Fill the parameters of an abstract module with copies of these."""
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.copy, weights))
    return state


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
        if self.system.tied:
            return self.embedding.attend(hs).astype(jnp.float32) + self.output_bias[...]
        return self.output(hs).astype(jnp.float32)

    def inputs(self, tokens: Array) -> Array:
        if self.system.embedding_size is not None:
            return self.embedding(tokens)
        return jax.nn.one_hot(tokens, self.system.vocabulary_size, dtype=self.dtype)


def _drop(rate: float, xs: Array, key: Array, at_all_times: bool) -> Array:
    dropout = nnx.Dropout(rate, broadcast_dims=(0,) if at_all_times else ())
    return dropout(xs, deterministic=False, rngs=nnx.Rngs(key))


_PARTS = on_jax.Parts(
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
        return self.output(features)[:, 0].astype(jnp.float32)


@cache
def _made(system: AnySystem, dtype: DType) -> tuple[Any, Any, Loss]:
    """An abstract network, its graph, and its loss, by whose identity compiled code is found."""
    kind: Any = ReviewsNetwork if isinstance(system, Classification) else LanguageNetwork
    module: Any = nnx.eval_shape(lambda: kind(system, dtype, nnx.Rngs(0)))
    graph = nnx.graphdef(module)
    if isinstance(system, Classification):
        return module, graph, _reviews_loss(graph)

    loss = on_jax.stacked_loss(system, _PARTS, lambda weights, c: (nnx.merge(graph, weights), c))
    return module, graph, loss


def _weights(module: Any, system: System, params: LanguageModelParams) -> Any:
    output = output_layer(params)
    weights: dict[str, Any] = {"layers": _layer_weights(params)}
    if system.tied:
        weights["output_bias"] = output.b
    else:
        weights["output"] = {"kernel": output.w, "bias": output.b}
    if params.embedding is not None:
        weights["embedding"] = {"embedding": params.embedding}
    return _with_weights(module, weights)


def _reviews_weights(module: Any, params: ClassifierParams) -> Any:
    assert params.dense is not None
    weights = {
        "learnt": params.embedding,
        "layers": _layer_weights(params),
        "dense": {"kernel": params.dense.w, "bias": params.dense.b},
        "output": {"kernel": params.output.w, "bias": params.output.b},
    }
    return _with_weights(module, weights)


def _reviews_loss(graph: Any) -> Loss:
    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        words, labels, vectors = batch
        with jax.default_matmul_precision("highest"):
            logits = nnx.merge(graph, weights)(words, vectors, key)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), carry

    return loss


def _chosen(job: shapes.Job, key: Array, logits: Array) -> tuple[Array, Array]:
    """The next tokens, and the next key."""
    logits = logits.astype(jnp.float32)
    if job.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), key
    key, use = random.split(key)
    logits /= job.temperature
    if not job.top_n:
        return random.categorical(use, logits).astype(jnp.int32), key
    values, ids = lax.top_k(logits, min(job.top_n, logits.shape[-1]))
    drawn = random.categorical(use, values)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0], key

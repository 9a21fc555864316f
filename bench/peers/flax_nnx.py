"""Flax: `nnx.RNN` around `OptimizedLSTMCell` or `GRUCell`, trained with Optax."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, random

from bench.implementation import DType
from bench.shapes import BATCHES, System
from lstm_jax.models import LanguageModelParams, output_layer


class FlaxNnx:
    """Flax as its performance guide has it: `jax.jit` over split state, donated."""

    name = "flax-nnx"

    def build(self, system: System, dtype: DType, params: LanguageModelParams) -> FlaxTraining:
        """See `Implementation`."""
        return FlaxTraining(system, dtype, params)


PEER = FlaxNnx()


class Network(nnx.Module):
    """Tokens `[T, B]` -> logits `[T, B, V]`."""

    def __init__(self, system: System, dtype: DType, rngs: nnx.Rngs) -> None:
        compute = jnp.dtype(dtype)
        self.system, self.dtype = system, compute
        if system.embedding_size is not None:
            sizes = (system.vocabulary_size, system.embedding_size)
            self.embedding = nnx.Embed(*sizes, dtype=compute, rngs=rngs)
        cell: Any = nnx.OptimizedLSTMCell if system.cell == "lstm" else nnx.GRUCell
        inputs = [system.input_size] + [system.hidden_size] * (system.layers - 1)
        self.layers = nnx.List(
            nnx.RNN(
                cell(size, system.hidden_size, dtype=compute, rngs=rngs),
                time_major=True,
                return_carry=True,
                rngs=False,
            )
            for size in inputs
        )
        self.dropout = nnx.Dropout(system.dropout)
        self.output = nnx.Linear(
            system.hidden_size, system.vocabulary_size, dtype=compute, rngs=rngs
        )

    def __call__(
        self, tokens: Array, carry: tuple[Any, ...], dropout_key: Array | None
    ) -> tuple[tuple[Any, ...], Array]:
        """Runs it; a key switches dropout on."""
        carry, hs = self.hidden(tokens, carry, dropout_key)
        return carry, self.output(hs).astype(jnp.float32)

    def inputs(self, tokens: Array) -> Array:
        """What enters the first layer."""
        if self.system.embedding_size is not None:
            xs: Array = self.embedding(tokens)
            return xs
        return jax.nn.one_hot(tokens, self.system.vocabulary_size, dtype=self.dtype)

    def hidden(
        self, tokens: Array, carry: tuple[Any, ...], dropout_key: Array | None
    ) -> tuple[tuple[Any, ...], Array]:
        """All but the output layer."""
        xs = self.inputs(tokens)
        rngs = None if dropout_key is None else nnx.Rngs(dropout_key)
        finals = []
        for layer, before in zip(self.layers, carry, strict=True):
            final, xs = layer(xs, initial_carry=before)
            xs = self.dropout(xs, deterministic=rngs is None, rngs=rngs)
            finals.append(final)
        return tuple(finals), xs


class _State(NamedTuple):
    params: Any
    opt_state: Any
    carry: Any
    batch: Array
    key: Array


class FlaxTraining:
    """See `Training`."""

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams) -> None:
        self._program = make_program(system, dtype)
        loaded = load(self._program, params)
        self._first = tuple(map(jnp.asarray, system.batch(0)))
        self._rows = jnp.asarray(system.rows())
        self._state = _State(
            loaded,
            self._program.optimizer.init(loaded),
            zero_carry(system, system.batch_size),
            jnp.int32(0),
            random.key(0),
        )
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(loaded))
        self.settings: Mapping[str, str] = {
            "cell": type(self._program.module().layers[0].cell).__name__,
            "input": "one_hot" if system.embedding_size is None else "nnx.Embed",
            "jit": "jax.jit over split state, donated",
        }

    @property
    def parameters_beyond_ours(self) -> int:
        """Its GRU lacks the bias inside the reset product."""
        system = self._program.system
        return -system.layers * system.hidden_size if system.cell == "gru" else 0

    def loss(self) -> float:
        """See `Training`."""
        return float(_mean_loss(self._program, self._state.params, *self._first))

    def step(self) -> None:
        """See `Training`."""
        done = _train_step(self._program, self._state, self._rows)
        self._state, _ = jax.block_until_ready(done)


class Program(NamedTuple):
    """What is compiled: the network's form, and how it is trained."""

    system: System
    graph: Any
    optimizer: optax.GradientTransformation

    def module(self) -> Any:
        """The network without numbers."""
        return nnx.eval_shape(lambda: Network(self.system, "float32", nnx.Rngs(0)))


@cache
def make_program(system: System, dtype: DType) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    abstract = nnx.eval_shape(lambda: Network(system, dtype, nnx.Rngs(0)))
    optimizer = optax.chain(
        optax.clip_by_global_norm(system.clip_norm), optax.adam(system.learning_rate)
    )
    return Program(system, nnx.graphdef(abstract), optimizer)


def load(program: Program, params: LanguageModelParams) -> Any:
    """Our weights as the network's state."""
    state = nnx.state(program.module(), nnx.Param)
    output = output_layer(params)
    weights: dict[str, Any] = {
        "output": {"kernel": output.w, "bias": output.b},
        "layers": {
            index: {"cell": _cell_weights(program.system, layer)}
            for index, layer in enumerate(params.layers)
        },
    }
    if params.embedding is not None:
        weights["embedding"] = {"embedding": params.embedding}
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.copy, weights))
    return state


def _cell_weights(system: System, layer: Any) -> dict[str, Any]:
    bias_at = "dense_h" if system.cell == "lstm" else "dense_i"
    kernels = {"dense_i": {"kernel": layer.w_x}, "dense_h": {"kernel": layer.w_h}}
    kernels[bias_at]["bias"] = layer.b
    return kernels


def zero_carry(system: System, batch_size: int) -> tuple[Any, ...]:
    """What every layer starts from."""

    def zeros() -> Array:
        return jnp.zeros((batch_size, system.hidden_size))

    one = (lambda: (zeros(), zeros())) if system.cell == "lstm" else zeros
    return tuple(one() for _ in range(system.layers))


def _forward(
    program: Program, params: Any, carry: Any, inputs: Array, targets: Array, key: Array | None
) -> tuple[Array, Any]:
    network = nnx.merge(program.graph, params)
    # Full float32 on a GPU, as ours: its default there is TF32.
    with jax.default_matmul_precision("highest"):
        carry, logits = network(inputs, carry, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(), carry


@jax.jit(static_argnums=0)
def _mean_loss(program: Program, params: Any, inputs: Array, targets: Array) -> Array:
    carry = zero_carry(program.system, program.system.batch_size)
    return _forward(program, params, carry, inputs, targets, None)[0]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _train_step(program: Program, state: _State, rows: Array) -> tuple[_State, Array]:
    system = program.system
    key = random.fold_in(state.key, state.batch)
    before = jax.tree.map(
        lambda c: jnp.where(state.batch % BATCHES == 0, jnp.zeros_like(c), c), state.carry
    )
    start = state.batch % BATCHES * system.sequence_length
    tokens = jax.lax.dynamic_slice_in_dim(rows, start, system.sequence_length + 1)

    def loss_of(params: Any) -> tuple[Array, Any]:
        dropout_key = key if system.dropout else None
        return _forward(program, params, before, tokens[:-1], tokens[1:], dropout_key)

    (loss, carry), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return _State(params, opt_state, carry, state.batch + 1, state.key), loss

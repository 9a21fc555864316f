"""What implementations on JAX share: a training step with Optax, a layer's backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random

from bench.shapes import BATCHES, AnySystem, Classification, System

Forward = Callable[[Any, Any, Any], Array]
Loss = Callable[[Any, Any, Any, Array | None], tuple[Array, Any]]
"""(weights, carry, batch, dropout key or None) -> (mean loss, carry)."""


class Program(NamedTuple):
    """What a step is compiled for; code is found again by the identity of what it holds."""

    loss: Loss
    optimizer: optax.GradientTransformation


class _State(NamedTuple):
    weights: Any
    opt_state: Any
    carry: Any
    steps: Array
    key: Array


class OptaxTraining:
    """See `Training`: one jitted step over donated state, which takes the weights over.

    Its cell has `beyond_ours` weights more than ours; the `shared` arrays go with every batch.
    """

    def __init__(
        self,
        system: AnySystem,
        loss: Loss,
        weights: Any,
        settings: Mapping[str, str],
        beyond_ours: int = 0,
        shared: tuple[Array, ...] = (),
    ) -> None:
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(weights)) - beyond_ours
        self.settings = settings
        self._program, self._zero_carry = (
            Program(loss, make_optimizer(system)),
            partial(zero_carry, system),
        )
        self._carried = isinstance(system, System) and system.carried
        self._batches: Sequence[Any] = [
            (*map(jnp.asarray, system.batch(index)), *shared) for index in range(BATCHES)
        ]
        self._index = 0
        opt_state = self._program.optimizer.init(weights)
        self._state = _State(weights, opt_state, zero_carry(system), jnp.int32(0), random.key(0))

    def loss(self) -> float:
        weights, carry = self._state.weights, self._zero_carry()
        return float(_mean_loss(self._program, weights, carry, self._batches[0]))

    def step(self) -> None:
        if self._index == 0 or not self._carried:
            self._state = self._state._replace(carry=self._zero_carry())
        done = _train_step(self._program, self._state, self._batches[self._index])
        self._state, _ = jax.block_until_ready(done)
        self._index = (self._index + 1) % BATCHES


@cache
def make_optimizer(system: AnySystem) -> optax.GradientTransformation:
    """Clipping where the system has it, and Adam."""
    adam = optax.adam(system.learning_rate)
    if isinstance(system, Classification):
        return adam
    return optax.chain(optax.clip_by_global_norm(system.clip_norm), adam)


class Parts(NamedTuple):
    """Of a language model, in a library's own terms; a carry is that of one layer.

    Attributes:
        inputs: (weights, tokens) -> what enters the first layer.
        layer: (index, weights, carry, xs) -> (carry, outputs).
        drop: (rate, xs, key, whether the same at all times) -> xs.
        logits: (weights, outputs) -> logits.
    """

    inputs: Callable[[Any, Array], Array]
    layer: Callable[[int, Any, Any, Array], tuple[Any, Array]]
    drop: Callable[[float, Array, Array, bool], Array]
    logits: Callable[[Any, Array], Array]


def stacked_loss(
    system: System,
    parts: Parts,
    prepared: Callable[[Any, Any], tuple[Any, Any]],
    *,
    batch_major: bool = False,
) -> Loss:
    """A language model's loss; `prepared` gives weights and carry as the parts take them."""

    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        inputs, targets = (ids.T for ids in batch) if batch_major else batch
        # Full float32 on a GPU, as ours: its default there is TF32.
        with jax.default_matmul_precision("highest"):
            weights, carry = prepared(weights, carry)
            carry, hs = hidden(system, parts, weights, carry, inputs, key)
            logits = parts.logits(weights, hs).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), carry

    return loss


def hidden(
    system: System, parts: Parts, weights: Any, carry: Any, tokens: Array, key: Array | None
) -> tuple[list[Any], Array]:
    """All of a language model but its output layer; a key switches dropout on."""
    keys = None if key is None else random.split(key, system.layers + 1)
    at_inputs = system.dropout_place == "inputs"

    def drop(rate: float, xs: Array, place: int, at_all_times: bool = False) -> Array:
        if keys is None or not rate:
            return xs
        return parts.drop(rate, xs, keys[place], at_all_times)

    xs, finals = parts.inputs(weights, tokens), []
    for index, before in enumerate(carry):
        xs = drop(system.dropout * at_inputs, xs, index, at_all_times=True)
        final, xs = parts.layer(index, weights, before, xs)
        xs = drop(system.dropout * (not at_inputs), xs, index)
        finals.append(final)
    return finals, drop(system.output_dropout, xs, -1)


def cast(tree: Any, dtype: str) -> Any:
    """All arrays in the dtype of the products."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def zero_carry(system: AnySystem, batch: int | None = None) -> list[Any]:
    """What every layer starts from: a pair for an LSTM, else one array; a classifier has none."""

    def zeros() -> Array:
        return jnp.zeros((batch or system.batch_size, system.hidden_size))

    if isinstance(system, Classification):
        return []
    return [(zeros(), zeros()) if system.cell == "lstm" else zeros() for _ in range(system.layers)]


class JaxLayerPass:
    """See `LayerPass`.

    Args:
        forward: (weights, carry, xs) -> ys.
        inputs: weights, carry and xs.
        dys: the gradient of ys.
        named: gradients of `inputs` -> the same by our names, in our shapes.
        settings: see `LayerPass`.
    """

    def __init__(
        self,
        forward: Forward,
        inputs: tuple[Any, Any, Any],
        dys: Any,
        named: Callable[[Any, Any, Any], dict[str, Any]],
        settings: Mapping[str, str],
    ) -> None:
        self._forward, self._named = forward, named
        self._inputs, self._dys = jax.device_put((inputs, dys))
        self.settings = settings

    def run(self) -> None:
        jax.block_until_ready(_forward_backward(self._forward, self._inputs, self._dys))

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        _, gradients = _forward_backward(self._forward, self._inputs, self._dys)
        named = self._named(*gradients)
        return {name: np.asarray(each, np.float32) for name, each in named.items()}


@partial(jax.jit, static_argnums=0)
def _forward_backward(forward: Forward, inputs: Any, dys: Array) -> tuple[Array, Any]:
    # Full float32 on a GPU, as ours: its default there is TF32.
    with jax.default_matmul_precision("highest"):
        ys, back = jax.vjp(forward, *inputs)
        return ys, back(dys.astype(ys.dtype))


@partial(jax.jit, static_argnums=0)
def _mean_loss(program: Program, weights: Any, carry: Any, batch: Any) -> Array:
    return program.loss(weights, carry, batch, None)[0]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _train_step(program: Program, state: _State, batch: Any) -> tuple[_State, Array]:
    key = random.fold_in(state.key, state.steps)

    def loss_of(weights: Any) -> tuple[Array, Any]:
        return program.loss(weights, state.carry, batch, key)

    (loss, carry), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.weights)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    return _State(weights, opt_state, carry, state.steps + 1, state.key), loss

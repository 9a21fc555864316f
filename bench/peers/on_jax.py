"""Shared by implementations on JAX: a training step with Optax, and a layer's backward pass."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import cycle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random

from bench.peers import LayerPass, Training
from bench.shapes import BATCHES, AnySystem, Classification, DType, System

Loss = Callable[[Any, Any, Any, Array | None], tuple[Array, Any]]
"""(weights, carry, batch, dropout key or None) -> (mean loss, carry)."""


class _State(NamedTuple):
    weights: Any
    opt_state: Any
    carry: Any
    steps: Array
    key: Array


def optax_training(
    system: AnySystem,
    loss: Loss,
    weights: Any,
    settings: Mapping[str, str],
    beyond_ours: int = 0,
    shared: tuple[Array, ...] = (),
) -> Training:
    """One jitted step over donated state, which takes over the weights.

    Its cell has `beyond_ours` more weights than ours; the `shared` arrays go with every batch.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights)) - beyond_ours
    batches = [(*map(jnp.asarray, system.batch(index)), *shared) for index in range(BATCHES)]
    turns, optimizer = cycle(enumerate(batches)), make_optimizer(system)
    opt_state = optimizer.init(weights)
    state = _State(weights, opt_state, zero_carry(system), jnp.int32(0), random.key(0))

    def first_loss() -> float:
        return float(_mean_loss(loss, state.weights, zero_carry(system), batches[0]))

    def step(times: int = 1) -> None:
        nonlocal state
        for _ in range(times):
            index, batch = next(turns)
            if index == 0 or not system.carried:
                state = state._replace(carry=zero_carry(system))
            state, _ = _train_step(loss, optimizer, state, batch)
        jax.block_until_ready(state)

    return Training(step, first_loss, parameters, settings)


@cache
def make_optimizer(system: AnySystem) -> optax.GradientTransformation:
    clip = [] if system.clip_norm is None else [optax.clip_by_global_norm(system.clip_norm)]
    return optax.chain(*clip, optax.adam(system.learning_rate))


class Parts(NamedTuple):
    """Parts of a language model in a library's own terms; each layer has its own carry."""

    inputs: Callable[[Any, Array], Array]  # (weights, tokens) -> inputs of the first layer.
    #: (index, weights, carry, xs) -> (carry, outputs).
    layer: Callable[[int, Any, Any, Array], tuple[Any, Array]]
    #: (rate, xs, key, whether the same at all time steps) -> xs.
    drop: Callable[[float, Array, Array, bool], Array]
    logits: Callable[[Any, Array], Array]  # (weights, outputs) -> logits.


def stacked_loss(
    system: System,
    parts: Parts,
    prepared: Callable[[Any, Any], tuple[Any, Any]],
    *,
    batch_major: bool = False,
) -> Loss:
    """A language model's loss; `prepared` converts weights and carry to the parts' form."""

    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        inputs, targets = (ids.T for ids in batch) if batch_major else batch
        # Full float32 on GPU, like ours: its default is TF32.
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
    """Run everything but the output layer; a key enables dropout."""
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
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def zero_carry(system: AnySystem, batch: int | None = None) -> list[Any]:
    """Initial carry of every layer: a pair for an LSTM, else one array; none for a classifier."""

    def zeros() -> Array:
        return jnp.zeros((batch or system.batch_size, system.hidden_size))

    if isinstance(system, Classification):
        return []
    return [(zeros(), zeros()) if system.cell == "lstm" else zeros() for _ in range(system.layers)]


def layer_pass(
    forward: Callable[[Any, Any, Any], Array],
    inputs: tuple[Any, Any, Any],
    dys: Any,
    named: Callable[[Any, Any, Any], dict[str, Any]],
    settings: Mapping[str, str],
    dtype: DType,
    *,
    batch_major: bool = False,
    places: tuple[Any, ...] | None = None,
) -> LayerPass:
    """A layer's outputs and gradients, by `forward`: weights, carry and xs, the `inputs` -> ys.

    `named` gives gradients of the inputs our names and shapes. The products have this dtype where
    `forward` does not say it. Time-major xs and dys are turned for a `batch_major` layer. The
    inputs, and dys like xs, go to their `places`, by default the first device.
    """

    def turned(array: Any) -> Any:
        return array.swapaxes(0, 1) if batch_major else array

    weights, carry, xs = inputs
    given = jax.device_put((weights, carry, np.ascontiguousarray(turned(xs))), places)
    cotangent = jax.device_put(np.ascontiguousarray(turned(dys)), places and places[-1])
    how = (forward, "high" if dtype == "tf32" else "highest", given)
    run, run_forward = repeated(_forward_backward, *how, cotangent), repeated(_forward, *how)

    def gradients() -> dict[str, np.ndarray[Any, Any]]:
        ys, (weights, carry, xs) = run()
        found = named(weights, carry, turned(xs)) | {"ys": turned(ys)}
        return {name: np.asarray(each, np.float32) for name, each in found.items()}

    def outputs() -> np.ndarray[Any, Any]:
        return np.asarray(turned(run_forward()), np.float32)

    return LayerPass(run, run_forward, gradients, outputs, settings)


def repeated(call: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """Make the call so many times, and wait for the last result."""

    def run(times: int = 1) -> Any:
        for _ in range(times):
            found = call(*given)
        return jax.block_until_ready(found)

    return run


@partial(jax.jit, static_argnums=(0, 1))
def _forward(forward: Any, precision: str, inputs: Any) -> Array:
    # Full float32 on GPU, like ours, unless TF32 is asked for: its default is TF32.
    with jax.default_matmul_precision(precision):
        return forward(*inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _forward_backward(forward: Any, precision: str, inputs: Any, dys: Array) -> tuple[Array, Any]:
    with jax.default_matmul_precision(precision):
        ys, back = jax.vjp(forward, *inputs)
        return ys, back(dys.astype(ys.dtype))


def stored(dtype: DType) -> str:
    """Dtype in which the operands of such products are stored."""
    return "bfloat16" if dtype == "bfloat16" else "float32"


# Compiled code is found by the identity of loss and optimizer.
@partial(jax.jit, static_argnums=0)
def _mean_loss(loss: Loss, weights: Any, carry: Any, batch: Any) -> Array:
    return loss(weights, carry, batch, None)[0]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _train_step(loss: Loss, optimizer: Any, state: _State, batch: Any) -> tuple[_State, Array]:
    weights, opt_state, carry, steps, key = state
    of_weights = jax.value_and_grad(loss, has_aux=True)
    (mean, carry), gradients = of_weights(weights, carry, batch, random.fold_in(key, steps))
    updates, opt_state = optimizer.update(gradients, opt_state, weights)
    weights = optax.apply_updates(weights, updates)
    return _State(weights, opt_state, carry, steps + 1, key), mean

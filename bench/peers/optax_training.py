"""Training with Optax, for peers that are JAX: one jitted step over donated state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, random

from bench.shapes import BATCHES, AnySystem, Classification, System


class Program(NamedTuple):
    """What a step is compiled for; code is found again by the identity of what it holds.

    Attributes:
        loss: (weights, carry, batch, dropout key or None) -> (mean loss, carry).
        optimizer: gradients -> updates.
    """

    loss: Callable[[Any, Any, Any, Array | None], tuple[Array, Any]]
    optimizer: optax.GradientTransformation


class _State(NamedTuple):
    weights: Any
    opt_state: Any
    carry: Any
    steps: Array
    key: Array


class OptaxTraining:
    """See `Training`.

    Args:
        system: its shape.
        program: from `make_optimizer` and a loss.
        weights: what is trained; taken over.
        zero_carry: gives what an epoch starts from.
        settings: see `Training`.
        parameters_beyond_ours: see `Training`.
        shared: arrays that go with every batch.
    """

    def __init__(
        self,
        system: AnySystem,
        program: Program,
        weights: Any,
        zero_carry: Callable[[], Any],
        settings: Mapping[str, str],
        parameters_beyond_ours: int = 0,
        shared: tuple[Array, ...] = (),
    ) -> None:
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
        self.parameters_beyond_ours = parameters_beyond_ours
        self.settings = settings
        self._program, self._zero_carry = program, zero_carry
        self._carried = isinstance(system, System) and system.carried
        self._batches: Sequence[Any] = [
            (*map(jnp.asarray, system.batch(index)), *shared) for index in range(BATCHES)
        ]
        self._index = 0
        self._state = _State(
            weights, program.optimizer.init(weights), zero_carry(), jnp.int32(0), random.key(0)
        )

    def loss(self) -> float:
        """See `Training`."""
        weights, carry = self._state.weights, self._zero_carry()
        return float(_mean_loss(self._program, weights, carry, self._batches[0]))

    def step(self) -> None:
        """See `Training`."""
        if self._index == 0 or not self._carried:
            self._state = self._state._replace(carry=self._zero_carry())
        done = _train_step(self._program, self._state, self._batches[self._index])
        self._state, _ = jax.block_until_ready(done)
        self._index = (self._index + 1) % BATCHES


def make_optimizer(system: AnySystem) -> optax.GradientTransformation:
    """Clipping where the system has it, and Adam."""
    adam = optax.adam(system.learning_rate)
    if isinstance(system, Classification):
        return adam
    return optax.chain(optax.clip_by_global_norm(system.clip_norm), adam)


def token_loss(
    forward: Callable[[Any, Any, Array, Array | None], tuple[Any, Array]],
    *,
    batch_major: bool = False,
) -> Callable[[Any, Any, Any, Array | None], tuple[Array, Any]]:
    """A language model's loss.

    Args:
        forward: (weights, carry, tokens [T, B], dropout key or None) -> (carry, logits [T, B, V]).
        batch_major: its tokens are [B, T], and its logits [B, T, V].
    """

    def loss(weights: Any, carry: Any, batch: Any, key: Array | None) -> tuple[Array, Any]:
        inputs, targets = (ids.T for ids in batch) if batch_major else batch
        # Full float32 on a GPU, as ours: its default there is TF32.
        with jax.default_matmul_precision("highest"):
            carry, logits = forward(weights, carry, inputs, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), carry

    return loss


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

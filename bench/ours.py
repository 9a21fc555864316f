"""The library itself, through the training step that `train.py` runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bench.report import OURS
from bench.shapes import BATCHES, AnyParams, AnySystem, Classification, DType, System
from lstm_jax.losses import TokenSums
from lstm_jax.systems.base import Objective, OptimizerConfig, Predictions
from lstm_jax.systems.language import LaneRows, LanguageObjective
from lstm_jax.systems.poems import PoemObjective
from lstm_jax.systems.reviews import LabelledTexts, ReviewObjective
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from lstm_jax.training.state import Program, TrainState, train_step


class Ours:
    """`lstm_jax`."""

    name = OURS

    def build(self, system: AnySystem, dtype: DType, params: AnyParams) -> OurTraining:
        """See `Implementation`."""
        return OurTraining(system, dtype, params)


class OurTraining:
    """See `Training`."""

    def __init__(self, system: AnySystem, dtype: DType, params: AnyParams) -> None:
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.parameters_beyond_ours = 0
        self.settings: Mapping[str, str] = {"backend": "auto"}
        self._program = make_program(system, dtype)
        self._data = epoch(system)
        self._index = 0
        params = jax.tree.map(jnp.copy, params)  # the state is donated; the weights are shared
        self._state = first_state(self._program, params, system.batch_size)

    def loss(self) -> float:
        """See `Training`."""
        return float(_mean_loss(self._program.objective, self._state.params, self._data[0]))

    def step(self) -> None:
        """See `Training`."""
        done = train_step(self._program, self._state, self._data[self._index])
        self._state, _ = jax.block_until_ready(done)
        self._index = (self._index + 1) % BATCHES


@cache
def make_program(system: AnySystem, dtype: DType) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    clip_norm = None if isinstance(system, Classification) else system.clip_norm
    adam = OptimizerConfig(learning_rate=system.learning_rate, clip_norm=clip_norm)
    optimizer = make_optimizer(adam, learning_rate_schedule(adam, 1))
    return Program(_objective(system, dtype), optimizer, BATCHES)


def _objective(system: AnySystem, dtype: DType) -> Objective:
    if isinstance(system, Classification):
        return ReviewObjective(system.model(dtype))
    if system.carried:
        return LanguageObjective(system.model(dtype), system.sequence_length)
    return PoemObjective(system.model(dtype))


def epoch(system: AnySystem) -> list[Any]:
    """What each step finds its batch in, on the device, as `train.py` feeds it."""
    if isinstance(system, System) and system.carried:
        return [LaneRows(jnp.asarray(system.rows()), np.int32(0))] * BATCHES
    real = jnp.ones((system.sequence_length, system.batch_size), bool)
    batches = [jax.device_put(system.batch(index)) for index in range(BATCHES)]
    if isinstance(system, System):
        return [Predictions(inputs, targets, real) for inputs, targets in batches]
    weights, vectors = jnp.ones(system.batch_size), jnp.asarray(system.vectors())
    return [LabelledTexts(words, real, labels, weights, vectors) for words, labels in batches]


def first_state(program: Program, params: Any, batch_size: int) -> TrainState:
    """The state before the first step, which takes these parameters over."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=program.optimizer.init(params),
        carry=program.objective.zero_carry(params, batch_size),
        key=random.key(0),
        batch=jnp.int32(0),
        skipped=jnp.int32(0),
    )


@partial(jax.jit, static_argnums=0)
def _mean_loss(objective: Objective, params: Any, data: Any) -> Array:
    # Wide enough for every row; only a language model has a carry at all.
    batch_size = jax.tree.leaves(data)[0].shape[1]
    carry = objective.zero_carry(params, batch_size)
    sums, _ = objective.sums(params, carry, data, jnp.int32(0), None)
    whole: TokenSums = jax.tree.map(lambda *each: sum(each), *sums.parts.values())
    return whole.loss / whole.weight

"""The library itself, through the training step that `train.py` runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bench.implementation import DType
from bench.shapes import BATCHES, System
from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams
from lstm_jax.training.config import OptimizerConfig
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from lstm_jax.training.state import Program, TrainState, train_step
from lstm_jax.training.systems.language import LaneRows, LanguageObjective


class Ours:
    """`lstm_jax`."""

    name = "lstm_jax"

    def build(self, system: System, dtype: DType, params: LanguageModelParams) -> OurTraining:
        """See `Implementation`."""
        return OurTraining(system, dtype, params)


class OurTraining:
    """See `Training`."""

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams) -> None:
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.parameters_beyond_ours = 0
        self.settings: Mapping[str, str] = {"backend": "auto"}
        self._program = _program(system, dtype)
        self._model = language_model(system, dtype)
        self._rows = jnp.asarray(system.rows())
        self._first = tuple(map(jnp.asarray, system.batch(0)))
        self._state = _first_state(self._program, params, system.batch_size)

    def loss(self) -> float:
        """See `Training`."""
        return float(_mean_loss(self._model, self._state.params, *self._first))

    def step(self) -> None:
        """See `Training`."""
        done = train_step(self._program, self._state, LaneRows(self._rows, np.int32(0)))
        self._state, _ = jax.block_until_ready(done)


def language_model(system: System, dtype: DType) -> LanguageModel:
    """The system as the library's model."""
    config = LanguageModelConfig(
        cell=system.cell,
        layers=system.layers,
        hidden_size=system.hidden_size,
        embedding_size=system.embedding_size,
        dropout=system.dropout,
        dropout_place="outputs",
        compute_dtype=dtype,
    )
    return LanguageModel(config, system.vocabulary_size)


@cache
def _program(system: System, dtype: DType) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    adam = OptimizerConfig(learning_rate=system.learning_rate, clip_norm=system.clip_norm)
    return Program(
        LanguageObjective(language_model(system, dtype), system.sequence_length),
        make_optimizer(adam, learning_rate_schedule(adam, 1)),
        BATCHES,
    )


def _first_state(program: Program, params: LanguageModelParams, batch_size: int) -> TrainState:
    params = jax.tree.map(jnp.copy, params)  # the state is donated; the weights are shared
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=program.optimizer.init(params),
        carry=program.objective.zero_carry(params, batch_size),
        key=random.key(0),
        batch=jnp.int32(0),
        skipped=jnp.int32(0),
    )


@jax.jit(static_argnums=0)
def _mean_loss(
    model: LanguageModel, params: LanguageModelParams, inputs: Array, targets: Array
) -> Array:
    sums, _ = model.token_sums(params, None, inputs, targets)
    return sums.loss / sums.weight

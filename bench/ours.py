"""The library itself: the training step of `train.py`, a layer, the engine of `sample.py`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.sharding import Mesh

from bench.implementation import Implementation
from bench.peers.on_jax import JaxLayerPass
from bench.shapes import (
    BATCHES,
    AnyParams,
    AnySystem,
    Classification,
    DType,
    Job,
    LayerShape,
    LayerWork,
    System,
)
from lstm_jax import sharding
from lstm_jax.cells import CELLS
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import layer
from lstm_jax.sampling import FREE, generate, stream, with_weights
from lstm_jax.sampling.decode import power_of_two
from lstm_jax.systems.base import Objective, OptimizerConfig, Predictions
from lstm_jax.systems.language import LaneRows, LanguageObjective
from lstm_jax.systems.poems import PoemObjective
from lstm_jax.systems.reviews import LabelledTexts, ReviewObjective
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from lstm_jax.training.state import Program, TrainState, mean_loss, places_of, train_step

_SETTINGS = {"backend": "auto"}


class Peer(Implementation):
    """`lstm_jax`.

    Args:
        devices: how many share each batch in training.
    """

    cells = tuple(cell.name for cell in CELLS)

    def __init__(self, devices: int = 1) -> None:
        self._devices = devices

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> OurTraining:
        mesh = sharding.data_mesh(self._devices, system.batch_size)
        return OurTraining(system, dtype, params, mesh)

    def layer(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        def forward(params: Any, carry: Any, xs: Array) -> Array:
            return layer(params, carry, xs, compute_dtype=dtype, backend=shape.backend)[1]

        def named(params: Any, carry: Any, xs: Any) -> dict[str, Any]:
            arrays = {**params._asdict(), **carry._asdict(), "xs": xs}
            return {name: array for name, array in arrays.items() if array is not None}

        inputs = (work.params, jax.tree.map(jnp.asarray, work.carry), work.xs)
        return JaxLayerPass(forward, inputs, work.dys, named, {"backend": shape.backend})

    def sampling(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> OurSampling:
        return OurSampling(system, dtype, params, job)


class OurTraining:
    """See `Training`."""

    def __init__(self, system: AnySystem, dtype: DType, params: AnyParams, mesh: Mesh) -> None:
        self.settings = _SETTINGS | {"devices": str(mesh.size)}
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._program = make_program(system, dtype, mesh)
        self._data = [sharding.put_batch(self._program.mesh, each) for each in epoch(system)]
        self._index = 0
        if isinstance(system, Classification):
            params = params._replace(vectors=jnp.asarray(system.vectors()))  # type: ignore[call-arg]
        first = partial(first_state, self._program, batch_size=system.batch_size)
        places = places_of(self._program, jax.eval_shape(first, params))
        # Of copies, since the state is donated and the weights are shared.
        self._state = jax.jit(first, out_shardings=places)(jax.tree.map(np.asarray, params))

    def loss(self) -> float:
        return float(_loss_of(self._program.objective, self._state.params, self._data[0]))

    def step(self) -> None:
        done = train_step(self._program, self._state, self._data[self._index])
        self._state, _ = jax.block_until_ready(done)
        self._index = (self._index + 1) % BATCHES


@cache
def make_program(system: AnySystem, dtype: ComputeDtype, mesh: Mesh | None = None) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    clip_norm = None if isinstance(system, Classification) else system.clip_norm
    adam = OptimizerConfig(learning_rate=system.learning_rate, clip_norm=clip_norm)
    frozen = ("vectors",) if isinstance(system, Classification) else ()
    optimizer = make_optimizer(adam, learning_rate_schedule(adam, 1), frozen)
    mesh = mesh or sharding.data_mesh(1, system.batch_size)
    return Program(_objective(system, dtype), optimizer, BATCHES, system.batch_size, mesh, frozen)


def _objective(system: AnySystem, dtype: ComputeDtype) -> Objective:
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
    weights = jnp.ones(system.batch_size)
    return [LabelledTexts(words, real, labels, weights) for words, labels in batches]


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
def _loss_of(objective: Objective, params: Any, data: Any) -> Array:
    # Wide enough for every row; only a language model has a carry at all.
    batch_size = jax.tree.leaves(data)[0].shape[1]
    carry = objective.zero_carry(params, batch_size)
    sums, _ = objective.sums(params, carry, data, jnp.int32(0), None)
    return mean_loss(sums)


class OurSampling:
    """See `Sampling`."""

    settings: Mapping[str, str] = {"call": "generate"}

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams, job: Job) -> None:
        self._model, self._params = stored(system, dtype, params)
        prompts = job.prompts(system)
        free = np.full((job.places, job.batch), FREE, np.int32)
        self._template = np.concatenate([prompts, free])
        self._job, self._key, self._prompts = job, random.key(0), jax.device_put(prompts)

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        texts = generate(
            self._model,
            self._params,
            self._template,
            key=self._key,
            temperature=self._job.temperature,
            top_n=self._job.top_n,
        )
        return texts.tokens[self._job.prompt_length :]

    def write_one(self) -> None:
        """Absorbs the prompts and writes one place, by the code that was compiled for all."""
        job = self._job
        chunks = stream(
            self._model,
            self._params,
            self._template[: job.prompt_length + 1],
            key=self._key,
            places=power_of_two(job.places),  # as `generate` pads them
            temperature=job.temperature,
            top_n=job.top_n,
        )
        for _ in chunks:
            pass

    def scan(self) -> None:
        """The prompts at once, as training has them, without a loss or dropout."""
        jax.block_until_ready(_last_output(self._model, self._params, self._prompts))


def stored(
    system: System, dtype: DType, params: LanguageModelParams
) -> tuple[LanguageModel, LanguageModelParams]:
    """The model and its weights, stored and multiplied in that dtype."""
    return with_weights(system.model(dtype), params, dtype)


@partial(jax.jit, static_argnums=0)
def _last_output(
    model: LanguageModel, params: LanguageModelParams, tokens_TB: Array
) -> tuple[Any, Array]:
    carry, hs_TBH = model.hidden(params, None, tokens_TB)
    return carry, hs_TBH[-1]

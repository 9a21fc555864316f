"""The library itself: training as in `train.py`, a bare layer, and sampling as in `sample.py`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.sharding import Mesh, NamedSharding

from bench import shapes
from bench.peers import Implementation, LayerPass, Training
from bench.peers.on_jax import layer_pass
from bench.shapes import BATCHES, AnyParams, AnySystem, DType, StoredDType, System
from bench.workers import Built
from lstm_jax import sharding
from lstm_jax.cells import cell_named
from lstm_jax.kernels import mosaic
from lstm_jax.kernels.arithmetic import kernel_of
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.precision import ComputeDtype, products
from lstm_jax.recurrence import require_backend
from lstm_jax.sampling import FREE, generate, stream, with_weights
from lstm_jax.sampling.decode import power_of_two
from lstm_jax.stack import run_stack
from lstm_jax.systems.base import Objective, OptimizerConfig, Predictions
from lstm_jax.systems.language import LaneRows, LanguageObjective
from lstm_jax.systems.poems import PoemObjective
from lstm_jax.systems.reviews import LabelledTexts, ReviewObjective
from lstm_jax.training.log import total
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from lstm_jax.training.state import (
    Program,
    TrainState,
    evaluate,
    init_state,
    places_of,
    train_step,
)

_SEED = np.uint32(0)


@dataclass
class Peer(Implementation):
    """`lstm_jax`."""

    devices: int = 1  # number of devices that share each batch, except in sampling.

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        mesh = sharding.data_mesh(self.devices, system.batch_size)
        return training_on(system, dtype, params, mesh)

    def layer(self, shape: shapes.LayerShape, dtype: DType) -> LayerPass:
        require_layer(shape, dtype)
        work = shape.work()
        inputs = (work.layers, jax.tree.map(jnp.asarray, work.carries), work.xs)
        settings = {"backend": shape.backend, "unroll": str(shape.unroll)}
        settings |= {"devices": str(self.devices)}
        forward, places = forward_of(shape, dtype), None
        if self.devices > 1:
            mesh = sharding.data_mesh(self.devices, shape.batch)
            specs = tuple(map(sharding.rows_at, (None, 0, 1)))
            forward = jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=specs[-1])
            places = tuple(NamedSharding(mesh, spec) for spec in specs)
        return layer_pass(forward, inputs, work.dys, named, settings, dtype, places=places)

    def sampling(
        self, system: System, dtype: StoredDType, params: LanguageModelParams, job: shapes.Job
    ) -> Built:
        """See `Implementation`; for one text it also reads the prompt alone, or scans it."""
        model, params = with_weights(system.model(dtype), params, dtype)
        prompts = job.prompts(system)
        on_device = jax.device_put(prompts)
        template = np.concatenate([prompts, np.full((job.places, job.batch), FREE, np.int32)])
        how: Any = {"key": random.key(0), "temperature": job.temperature, "top_n": job.top_n}

        def write() -> Any:
            return generate(model, params, template, **how).tokens[job.prompt_length :]

        def prompt() -> None:
            """Generate one place, with the code compiled for all."""
            places = power_of_two(job.places)  # as `generate` pads them
            for _ in stream(model, params, template[: job.prompt_length + 1], places=places, **how):
                pass

        def scan() -> None:
            """Read the prompts at once, as in training, without loss or dropout."""
            jax.block_until_ready(_last_output(model, params, on_device))

        calls: dict[str, Callable[[], Any]] = {"write": write}
        if job.batch == 1:
            calls |= {"scan": scan} if job.places == 1 else {"prompt": prompt}
        return Built(calls, {"call": "generate"})


def require_layer(shape: shapes.LayerShape, dtype: DType) -> None:
    """Raise ValueError if the cell lacks the backend, or the scan would run in its place."""
    cell = cell_named(shape.cell)
    require_backend(cell, shape.backend)
    if shape.backend != "mosaic":
        return
    params = jax.eval_shape(lambda: cell.init(random.key(0), 1, shape.hidden_size))
    sizes = (shape.times, shape.batch), params.w_h.shape
    why = mosaic.refusal(products(dtype, jnp.float32), kernel_of(params).on_gpu, *sizes)
    if why is None and jax.default_backend() != "gpu":
        why = "needs a GPU"
    if why is not None:
        raise ValueError(f"backend 'mosaic' {why}")


def forward_of(shape: shapes.LayerShape, dtype: DType) -> Callable[[Any, Any, Any], Array]:
    """(weights, carries, xs) -> ys."""
    config, work = shape.config(dtype), shape.work()

    def forward(layers: Any, carries: Any, xs: Array) -> Array:
        # Behind a barrier, or XLA would compute what hangs on them alone when it compiles.
        given = jax.tree.map(jnp.asarray, {"mask": work.mask, "resets": work.resets})
        flags = lax.optimization_barrier(given)
        return run_stack(config, layers, carries, xs, **flags)[1]

    return forward


def named(layers: Any, carries: Any, xs: Any) -> dict[str, Any]:
    """Arrays by name: fields of the first layer by themselves, those above with its number."""
    found = {"xs": xs}
    for tree in (layers, carries):
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            found[jax.tree_util.keystr(path).removeprefix("[0]").removeprefix(".")] = array
    return found


def training_on(system: AnySystem, dtype: DType, params: AnyParams, mesh: Mesh) -> Training:
    """The system in training, with its batches split among the devices of a mesh."""
    program = make_program(system, dtype, mesh)
    batches = [sharding.put_batch(mesh, each) for each in epoch(system)]
    turns, started = cycle(batches), cast(Any, params)
    if isinstance(system, shapes.Classification):
        started = started._replace(vectors=jnp.asarray(system.vectors()))

    def first(params: Any) -> TrainState:
        state, opt_state = init_state(program, _SEED), program.optimizer.init(params)
        return replace(state, params=params, opt_state=opt_state)

    places = places_of(program, jax.eval_shape(first, started))
    # Copies, since the state is donated and the weights are shared.
    state = jax.jit(first, out_shardings=places)(jax.tree.map(np.asarray, started))

    def step(times: int = 1) -> None:
        nonlocal state
        for _ in range(times):
            state, _ = train_step(program, state, next(turns))
        jax.block_until_ready(state)

    def first_loss() -> float:
        given = (program.objective, state.params, batches[:1], system.batch_size)
        sums = total(evaluate(*given, mesh=mesh).values())
        return sums.loss / sums.weight

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Training(step, first_loss, parameters, {"backend": "auto", "devices": str(mesh.size)})


@cache
def make_program(system: AnySystem, dtype: ComputeDtype, mesh: Mesh | None = None) -> Program:
    """Cached, because compiled code is found by the program's identity."""
    objective: Objective
    frozen: tuple[str, ...] = ()
    if isinstance(system, shapes.Classification):
        objective, frozen = ReviewObjective(system.model(dtype)), ("vectors",)
    elif system.carried:
        objective = LanguageObjective(system.model(dtype), system.sequence_length)
    else:
        objective = PoemObjective(system.model(dtype))
    adam = OptimizerConfig(learning_rate=system.learning_rate, clip_norm=system.clip_norm)
    optimizer = make_optimizer(adam, learning_rate_schedule(adam, 1), frozen)
    mesh = mesh or sharding.data_mesh(1, system.batch_size)
    return Program(objective, optimizer, BATCHES, system.batch_size, mesh, frozen)


def epoch(system: AnySystem) -> list[Any]:
    """The device arrays in which each step finds its batch, as `train.py` feeds them."""
    if isinstance(system, System) and system.carried:
        return [LaneRows(jnp.asarray(system.rows()), np.int32(0))] * BATCHES
    real = jnp.ones((system.sequence_length, system.batch_size), bool)
    batches = [jax.device_put(system.batch(index)) for index in range(BATCHES)]
    if isinstance(system, System):
        return [Predictions(inputs, targets, real) for inputs, targets in batches]
    weights = jnp.ones(system.batch_size)
    return [LabelledTexts(words, real, labels, weights) for words, labels in batches]


def step_shapes(system: AnySystem, dtype: ComputeDtype) -> tuple[Callable[..., Any], Any, Any]:
    """The training step's `lower`, and the shapes of the state and batch to pass to it."""
    program = make_program(system, dtype)
    state = jax.eval_shape(partial(init_state, program), _SEED)
    batch = jax.eval_shape(lambda: epoch(system)[0])
    return partial(train_step.lower, program), state, batch


@partial(jax.jit, static_argnums=0)
def _last_output(
    model: LanguageModel, params: LanguageModelParams, tokens_TB: Array
) -> tuple[Any, Array]:
    carry, hs_TBH = model.hidden(params, None, tokens_TB)
    return carry, hs_TBH[-1]

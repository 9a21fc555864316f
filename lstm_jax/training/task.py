"""A run's settings and data, ready for training: optimizer, states, evaluation."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax import sharding
from lstm_jax.dropout import weight_drop
from lstm_jax.kernels import cudnn
from lstm_jax.settings import LARGEST_INTEGER
from lstm_jax.stack import StackConfig
from lstm_jax.systems.base import System, TrainConfig
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import Row, part_metrics
from lstm_jax.training.optimizer import (
    average_weights,
    averaged,
    learning_rate_schedule,
    make_optimizer,
)
from lstm_jax.training.run import RunFolder, learnt_params
from lstm_jax.training.state import (
    Program,
    TrainState,
    bytes_a_device,
    evaluate,
    init_state,
    places_of,
)


class Task(NamedTuple):
    """A run's settings and data, ready for training."""

    system: System
    program: Program
    total_steps: int
    learning_rate: Callable[[int], Any]  # by the number of previous updates
    parameters: int  # number of trained parameters

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.system.config


def make_task(system: System) -> Task:
    """Combine a system with the optimizer of its settings."""
    config, batches = system.config, system.batches
    steps = total_steps(config, batches)
    model = getattr(config, "model", None)
    if isinstance(model, StackConfig) and model.backend == "cudnn":
        cudnn.require_gpu()
    if config.tensor > 1 and not hasattr(system.objective, "vocabulary_specs"):
        raise ValueError(
            f"tensor is {config.tensor}, but {system.name} predicts no vocabulary that could be "
            "split; leave it at 1"
        )
    if steps > LARGEST_INTEGER:
        raise ValueError(
            f"{config.epochs} epochs of {batches} batches are {steps} steps; at most "
            f"{LARGEST_INTEGER} can be counted, so lower epochs or set steps"
        )
    shapes = jax.eval_shape(system.objective.init, jax.random.key(0))
    if config.weight_drop:
        jax.eval_shape(partial(weight_drop, rate=config.weight_drop), jax.random.key(0), shapes)
    if system.frozen:
        shapes = shapes._replace(**dict.fromkeys(system.frozen))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    schedule = learning_rate_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule, system.frozen)
    sizes = (batches, config.batch_size, config.mesh)
    program = Program(
        system.objective, optimizer, *sizes, system.frozen, config.shard_state, config.weight_drop
    )
    _refuse_too_large(parameters, program)
    return Task(system, program, steps, schedule, parameters)


def total_steps(config: TrainConfig, batches: int) -> int:
    """Total number of steps of a run, with `batches` per epoch."""
    return config.steps or config.epochs * batches


def _refuse_too_large(parameters: int, program: Program) -> None:
    """Raise ValueError if the parameters with Adam's two moments exceed the memory."""
    needed = bytes_a_device(program)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if jax.default_backend() == "cpu":  # its devices share the host's memory
        needed *= len(program.mesh.local_devices)
    if memory is None:
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not available everywhere
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory is not None and needed > memory:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take {needed / 1e9:,.0f} GB in "
            f"training, and there are {memory / 1e9:,.0f} GB of memory; use smaller sizes"
        )


def first_state(task: Task) -> TrainState:
    """The initial state, on the run's devices."""
    state: TrainState = init_state(task.program, np.uint32(task.config.seed))
    if task.config.init_from is None:
        params = task.system.first_params(state.params)
    else:
        params = learnt_params(RunFolder(Path(task.config.init_from)), state.params)
    opt_state = state.opt_state
    if task.config.optimizer.average_after:
        opt_state = (*opt_state[:-1], average_weights().init(params))
    state = dataclasses.replace(state, params=params, opt_state=opt_state)
    places = places_of(task.program, state)
    return state if places is None else sharding.put_at(places, state)


def restored_state(
    task: Task, store: CheckpointStore, *, step: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """A step's state, by default the newest good one, on the run's devices, and its progress."""
    template = jax.eval_shape(lambda: init_state(task.program, np.uint32(task.config.seed)))
    if (places := places_of(task.program, template)) is not None:
        places = jax.tree.broadcast(places, template)
        template = jax.tree.map(lambda leaf, at: leaf.update(sharding=at), template, places)
    saved = store.restore(template, step=step)
    return saved.state, saved.progress


def heldout_metrics(
    task: Task, state: TrainState, should_stop: Callable[[], bool] = lambda: False
) -> Row:
    """Held-out loss in nats, accuracy and other metrics, by their names in a row.

    If `should_stop`, asked before each batch, returns True, the result is empty. Raises ValueError
    if nothing is held out.
    """
    system = task.system
    if not system.heldout_batch_size:
        raise ValueError(
            "nothing is held out in this run (heldout_share is 0), so there is no loss; begin a "
            "new run with --heldout-share 0.1"
        )
    return judged(task, state, "heldout_", system.heldout(), system.heldout_batch_size, should_stop)


def judged(
    task: Task, state: TrainState, prefix: str, batches: Iterable[Any], batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Row:  # fmt: skip
    """Evaluate a state on batches; see `evaluate`."""
    system, row = task.system, Row()
    mesh = task.program.mesh
    params = averaged(state.opt_state, state.params)
    sums = evaluate(system.objective, params, batches, batch_size, should_stop, mesh)
    for name, part in sums.items():
        row |= part_metrics(f"{prefix}{name}", part, with_perplexity=system.has_perplexity)
    return row

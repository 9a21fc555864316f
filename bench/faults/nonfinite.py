"""Losses and gradients that are not finite: nothing is learnt from them, and training gives up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.faults.lines import Line
from bench.faults.tiny import leaf_bytes
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import Row
from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.state import TrainState, train_step
from lstm_jax.training.task import Task, first_state, restored_state


class _Silent:
    """A report that nobody reads."""

    def advance(self, step: int) -> None:
        """See `Report`."""

    def row(self, row: Row) -> None:
        """See `Report`."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """See `Report`."""

    def note(self, text: str) -> None:
        """See `Report`."""


def poison(whole: Path, task: Task, scratch: Path) -> Line:
    """Trains with parameters that are NaN, one leaf after the other.

    Args:
        whole: a run, whose description is copied.
        task: what it trains.
        scratch: a folder for the runs.
    """
    leaves = len(jax.tree.leaves(first_state(task).params))
    failures = []
    for place in range(leaves):
        run = scratch / f"nonfinite-{place}"
        copy_description(RunFolder(whole), RunFolder(run))
        found = _tried(task, _poisoned(first_state(task), place), RunFolder(run))
        failures += [f"leaf {place}: {found}"] if found else []
    return Line(
        "loss and gradient not finite",
        leaves,
        tuple(failures),
        "one parameter array after the other was NaN: no step changed a parameter or the "
        f"optimizer; training gave up after {task.config.skipped_at_most} skipped steps and left a "
        "run that repeats the last",
    )


def _poisoned(state: TrainState, place: int) -> TrainState:
    structure: Any
    leaves, structure = jax.tree.flatten(state.params)
    leaves[place] = jnp.full_like(leaves[place], jnp.nan)
    return dataclasses.replace(state, params=structure.unflatten(leaves))


def _tried(task: Task, begun: TrainState, folder: RunFolder) -> str | None:
    """What is wrong, if anything is."""
    before = leaf_bytes((begun.params, begun.opt_state))
    try:
        with CheckpointStore(folder.checkpoints) as store:
            loop.train(task, begun, folder, store, _Silent())
        return "training went on to its end"
    except loop.NotFiniteError as error:
        if str(folder.nonfinite.path) not in str(error):
            return f"the run that repeats it is not named: {error}"
    for each in (folder, folder.nonfinite):
        saved = _saved(task, each)
        if leaf_bytes((saved.params, saved.opt_state)) != before:
            return f"{each.path.name} holds other parameters"
    _, metrics = train_step(task.program, saved, task.system.feed()(int(saved.step)))
    finite = bool(np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm))
    return "the run that was left does not repeat it" if finite else None


def _saved(task: Task, folder: RunFolder) -> Any:
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        return restored_state(task, store)[0]

"""A run that takes a moment, and what makes two of them equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from bench.faults.processes import Process
from lstm_jax.sampling import FREE, generate
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.systems import read_system
from lstm_jax.training.task import Task, make_task, restored_state

TEXT = "".join(f"{n} bottles of milk in row {n % 7} of the wall.\n" for n in range(400))
SAVE_EVERY = 5
_FLAGS = (
    "--model.hidden-size 12 --model.dropout 0.2 --batch-size 4 --sequence-length 16 "
    f"--log-every 3 --evaluate-every 8 --checkpoint-every {SAVE_EVERY} --keep-checkpoints 2 "
    "--sample-every 20 --sample.length 20 --sample-prompts 7"
)
_TIMINGS = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Place:
    """A folder of runs of one kind, each like the others.

    Attributes:
        path: of the folder.
        steps: of each run.
    """

    path: Path
    steps: int

    @property
    def data(self) -> Path:
        """The text that all are trained on."""
        return self.path / "text.txt"

    def make(self) -> None:
        """Makes the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.data.write_text(TEXT, encoding="utf-8")

    def begun(self, name: str, *more: str, notes: str = "process") -> Process:
        """A process that begins a run, or goes on with it where there is one.

        Args:
            name: the run's.
            *more: arguments.
            notes: tells processes of one run apart that are there at the same time.
        """
        run = self.path / name
        arguments = ["--run-dir", str(run)]
        if RunFolder(run).config.exists():
            arguments.append("--resume")
        else:
            arguments += ["--data", str(self.data), *_FLAGS.split(), "--steps", str(self.steps)]
        return Process([*arguments, *more], self.path / f"{name}-{notes}")

    def finished(self, name: str) -> Path:
        """A run, trained to its end.

        Raises:
            RuntimeError: it was refused.
        """
        process = self.begun(name)
        if process.wait():
            raise RuntimeError(f"{name} did not come to its end: {process.output}")
        return self.path / name


def task_of(run: Path) -> Task:
    """What a run trains."""
    return make_task(read_system(read_description(RunFolder(run)).config, run))


def differences(one: Path, other: Path, task: Task | None = None) -> list[str]:
    """In what two runs' last states, rows of metrics and samples are not byte for byte the same."""
    task = task or task_of(one)
    unequal = bytes_of(one, task).items() ^ bytes_of(other, task).items()
    told = sorted({f"{name} differs" for name, _ in unequal})
    if rows_of(one) != rows_of(other):
        told.append("rows of metrics differ")
    if sample_of(one) != sample_of(other):
        told.append("samples differ")
    return told


def bytes_of(run: Path, task: Task, step: int | None = None) -> dict[str, bytes]:
    """Each leaf of a saved state, by its path."""
    with CheckpointStore(RunFolder(run).checkpoints, read_only=True) as store:
        state, _ = restored_state(task, store, step=step)
    return leaf_bytes(state)


def leaf_bytes(state: Any) -> dict[str, bytes]:
    """Each leaf's bytes, by its path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        found[jax.tree_util.keystr(path)] = raw.tobytes()
    return found


def rows_of(run: Path) -> list[str]:
    """The rows of metrics as JSON, without the time that they took."""
    rows = read_rows(RunFolder(run).metrics)
    return [json.dumps({k: v for k, v in row.items() if k not in _TIMINGS}) for row in rows]


def sample_of(run: Path) -> bytes:
    """The tokens that the model of a run writes, drawn with a fixed key."""
    model, params, vocabulary = lstm_jax.load(run)
    template = np.full((40, 1), FREE)
    template[:9, 0] = vocabulary.encode("7 bottles")
    return np.asarray(generate(model, params, template, key=jax.random.key(1)).tokens).tobytes()

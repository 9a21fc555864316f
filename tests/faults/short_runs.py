"""Runs that take a moment, what can be seen of them from outside, and in what two differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from processes import Process
from run_cases import TEXT, rows_of, saved_state, unequal

import lstm_jax
from lstm_jax.sampling import FREE, generate
from lstm_jax.systems import read_system
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.task import Task, make_task

EVALUATE_EVERY, SAVE_EVERY, SAMPLE_EVERY = 8, 5, 20
FLAGS = (
    "--model.hidden-size 12 --model.dropout 0.2 --batch-size 4 --sequence-length 16 --log-every 1 "
    f"--evaluate-every {EVALUATE_EVERY} --checkpoint-every {SAVE_EVERY} --keep-checkpoints 2 "
    f"--heldout-share 0.4 --sample-every {SAMPLE_EVERY} --sample.length 20 --sample-prompts 7"
).split()
Promise = Callable[[str, int, Sequence[str], str], None]
"""Records a line of the table: a fault, how often it was tried, failures, what was seen."""


@dataclass(frozen=True)
class Place:
    """A folder of runs that are alike, each of so many steps."""

    path: Path
    steps: int

    def begun(self, name: str, *more: str, notes: str = "process") -> Process:
        """A process that begins a run, or goes on with it where there is one."""
        run = self.path / name
        arguments = ["--run-dir", str(run)]
        if RunFolder(run).config.exists():
            arguments.append("--resume")
        else:
            data = self.path / "text.txt"
            data.write_text(TEXT, encoding="utf-8")
            arguments += ["--data", str(data), *FLAGS, "--steps", str(self.steps)]
        return Process("train.py", [*arguments, *more], self.path / f"{name}-{notes}")

    def reached(self, name: str, at: str) -> Process:
        """A process in which something has just begun."""
        process = self.begun(name)
        process.wait_until(moment(at, self, name, process))
        return process

    def finished(self, name: str) -> Path:
        """A run, trained to its end."""
        process = self.begun(name)
        assert process.wait() == 0, process.errors
        return self.path / name


def task_of(run: Path) -> Task:
    """What a run trains."""
    return make_task(read_system(read_description(RunFolder(run)).config, run))


def newest_step(run: Path) -> int:
    """Of its checkpoints; 0 where there is none."""
    return max((int(name) for name in _names(run) if name.isdigit()), default=0)


# What can be seen from outside


MOMENTS = ("start", "compile", "step", "evaluation", "sample", "save", "deletion", "end")


def moment(name: str, place: Place, run: str, process: Process) -> Callable[[], bool]:
    """Whether something has just begun in a process of a run, as its files and its output tell."""
    folder = place.path / run
    newest, row = newest_step(folder), partial(last_row, folder)
    seen: dict[str, Callable[[], bool]] = {
        "start": lambda: process.has_begun,
        "compile": lambda: bool(process.output),  # the model's size, before the first step
        "step": lambda: row() > newest,
        # The row of a step is there before what is due after the next one begins.
        "evaluation": lambda: row() > newest and (row() + 1) % EVALUATE_EVERY == 0,
        # At these steps nothing is evaluated, so that the row comes before the samples.
        "sample": lambda: row() > newest and row() % SAMPLE_EVERY == 0 and row() % EVALUATE_EVERY,
        "save": lambda: is_saving(folder),
        "deletion": lambda: newest_step(folder) > newest,  # what is too old goes next
        "end": lambda: row() == place.steps,
    }
    return seen[name]


def last_row(run: Path) -> int:
    """The step of the last whole row of metrics; 0 where there is none."""
    rows = read_rows(RunFolder(run).metrics)
    return int(rows[-1]["step"]) if rows else 0


def is_saving(run: Path) -> bool:
    return any(not name.isdigit() for name in _names(run))


def _names(run: Path) -> list[str]:
    folder = RunFolder(run).checkpoints
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def differences(one: Path, other: Path, task: Task) -> list[str]:
    """In what two runs' last states, rows of metrics and samples are not byte for byte the same."""
    found = [
        f"{path} differs" for path in unequal(saved_state(one, task), saved_state(other, task))
    ]
    found += ["rows of metrics differ"] if rows_of(one) != rows_of(other) else []
    return found + (["samples differ"] if sample_of(one) != sample_of(other) else [])


def sample_of(run: Path) -> bytes:
    """The tokens that the model of a run writes, drawn with a fixed key."""
    model, params, vocabulary, _ = lstm_jax.load(run)
    template = np.full((40, 1), FREE)
    template[:9, 0] = vocabulary.encode("7 bottles")
    return np.asarray(generate(model, params, template, key=jax.random.key(1)).tokens).tobytes()

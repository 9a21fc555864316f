"""Small runs that the tests of training share."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems.base import OptimizerConfig
from lstm_jax.systems.corpus import Corpus, make_corpus
from lstm_jax.systems.language import LanguageConfig, LanguageSystem
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import Task, first_state, make_task, restored_state

TEXT = "".join(
    f"{n} times {m} is {n * m}, and {m} times {n} is the same.\n"
    for n in range(2, 14)
    for m in range(2, 12)
)


def config(**changes: Any) -> LanguageConfig:
    """A run of 30 steps that takes a moment."""
    settings: dict[str, Any] = {
        "heldout_share": 0.1,
        "batch_size": 4,
        "sequence_length": 16,
        "steps": 30,
        "log_every": 4,
        "evaluate_every": 10,
        "checkpoint_every": 6,
        "keep_checkpoints": 50,
        "sample_every": 0,
        "model": LanguageModelConfig(layers=2, hidden_size=12, dropout=0.2, cell="gru"),
        "optimizer": OptimizerConfig(learning_rate=0.02, schedule="cosine", warmup_steps=3),
    }
    return LanguageConfig(**settings | changes)


class Silent:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.samples: list[tuple[int, str, str]] = []
        self.notes: list[str] = []
        self.steps: list[int] = []

    def advance(self, step: int) -> None:
        self.steps.append(step)

    def row(self, row: Any) -> None:
        self.rows.append(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.samples.append((step, prompt, text))

    def note(self, text: str) -> None:
        self.notes.append(text)


@cache
def task(settings: LanguageConfig) -> Task:
    """The same task for the same settings, so that its step is compiled once."""
    return make_task(LanguageSystem(settings, corpus(settings)))


@cache
def corpus(settings: LanguageConfig) -> Corpus:
    return make_corpus(settings, TEXT)


def run(
    path: Path, the_task: Task, *, stop_at: int | None = None, resume: bool = False
) -> tuple[Any, Silent]:
    """Trains in a folder, from its start or its newest checkpoint, maybe stopping on the way."""
    folder, report = RunFolder(path), Silent()
    path.mkdir(exist_ok=True)
    with CheckpointStore(folder.checkpoints, keep_latest=50) as store:
        state, progress = first_state(the_task), {}
        if resume:
            state, progress = restored_state(the_task, store)

        def should_stop() -> bool:
            return stop_at is not None and bool(report.steps) and report.steps[-1] >= stop_at

        state = loop.train(
            the_task, state, folder, store, report, progress=progress, should_stop=should_stop
        )
    return state, report


def assert_same_bits(one: Any, other: Any) -> None:
    def same(path: Any, a: jax.Array, b: jax.Array) -> None:
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, one, other)


TIMINGS = ("seconds", "tokens_per_second")


def without_timings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a write: an error from the system in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

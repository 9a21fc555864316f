"""Small runs, and small states, that the tests of training share."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from run_cases import Bits, bits_of

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
SMALL: dict[str, Any] = {
    "heldout_share": 0.1, "batch_size": 4, "sequence_length": 16, "steps": 30, "log_every": 4,
    "evaluate_every": 10, "checkpoint_every": 6, "keep_checkpoints": 50, "sample_every": 0,
    "model": LanguageModelConfig(layers=2, hidden_size=12, dropout=0.2, cell="gru"),
    "optimizer": OptimizerConfig(learning_rate=0.02, schedule="cosine", warmup_steps=3),
}  # fmt: skip
"""A run of 30 steps that takes a moment."""


def write_data(folder: Path) -> Path:
    """Data of every system: 23 characters of a text; 11 of poems, which also end."""
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(list("abcdefghijk"), rng.integers(1, 13))) for _ in range(70)]
    reviews = [f"{'ab'[row % 2]} {' '.join(poem)}\t{row % 2}" for row, poem in enumerate(poems)]
    (folder / "poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    (folder / "reviews.tsv").write_text("\n".join(["text\tlabel", *reviews, ""]))
    (folder / "vectors.txt").write_text("a 0.5 -1 2\nc 1 1 -0.5\n")
    (folder / "text.txt").write_text(TEXT)
    return folder


def config(**changes: Any) -> LanguageConfig:
    return LanguageConfig(**SMALL | changes)


class Silent:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.rows, self.notes, self.steps = list[Any](), list[str](), list[int]()
        self.row, self.note, self.advance = self.rows.append, self.notes.append, self.steps.append
        self.samples: list[tuple[int, str, str]] = []

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.samples.append((step, prompt, text))


@cache
def task(settings: LanguageConfig) -> Task:
    """The same task for the same settings, so that its step is compiled once."""
    return make_task(LanguageSystem(settings, corpus(settings)))


@cache
def corpus(settings: LanguageConfig) -> Corpus:
    return make_corpus(settings, TEXT)


def run(
    path: Path, the_task: Task, *, stop_at: int | None = None, times: int = 0, begun: Any = None,
    report: Silent | None = None,
) -> tuple[Any, Silent]:  # fmt: skip
    """Trains in a folder, from its newest checkpoint or the beginning; a signal may end it.

    It comes once a step was taken in and training has asked for it so many times more.
    """
    folder, report, kept = RunFolder(path), report or Silent(), the_task.config.keep_checkpoints
    path.mkdir(exist_ok=True)
    store = CheckpointStore(folder.checkpoints, keep_latest=kept)
    state, progress = first_state(the_task) if begun is None else begun, {}
    if not store.is_empty:
        state, progress = restored_state(the_task, store)
    first, asked = int(state.step), itertools.count()

    def should_stop() -> bool:
        reached = report.steps[-1] if report.steps else first
        return stop_at is not None and reached >= stop_at and next(asked) >= times

    state = loop.train(
        the_task, state, folder, store, report, progress=progress, should_stop=should_stop
    )
    return state, report


# A state with leaves of all kinds, and folders of checkpoints of it


class Weights(NamedTuple):
    w: jax.Array
    b: jax.Array | None


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_state(seed: int = 0, width: int = 5) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(keys[0], (4, width))
    params = {"cell": Weights(w, None), "out": [w.astype(jnp.bfloat16), w.astype(jnp.float16)]}
    moments = (w * 2, {"nu": w**2, "empty": jnp.zeros((0, 3)), "mask": w > 0})
    return State(jnp.int32(seed), params, (moments, jnp.uint32(7)), keys[1])


def bits(tree: Any) -> list[Bits]:
    """Of every leaf: equal only if they are bit for bit."""
    return list(bits_of(tree).values())


def fill(directory: Path, *steps: int, **options: Any) -> None:
    store = CheckpointStore(directory, **options)
    for step in steps:
        store.save(step, make_state(step), {"step": step})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())

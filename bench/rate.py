"""Overhead of the training loop: its reported rate over that of the bare training step.

The loop is that of `train.py` on the system's preset and random data, with metrics but without
evaluations, samples and checkpoints, which its rate excludes. The bare step is the same compiled
one on the same batches, already on the device; each step's loss is awaited once the next step is
dispatched. Both exclude the first step of a run, and take turns in one process.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from bench import command
from bench.peers import OURS
from bench.report import make_row, print_table
from bench.shapes import BATCHES, system_named
from bench.timing import seconds, timing_of
from lstm_jax.settings import Bounds, Checked, Count
from lstm_jax.systems import preset_named, to_dict
from lstm_jax.systems.base import System
from lstm_jax.systems.corpus import Corpus
from lstm_jax.systems.language import LanguageConfig, LanguageSystem
from lstm_jax.systems.poems import Poems, PoemsConfig, PoemsSystem
from lstm_jax.systems.reviews import Encoded, ReviewsConfig, ReviewsSystem
from lstm_jax.text import Vocabulary, lanes
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import Report
from lstm_jax.training.log import Row as MetricsRow
from lstm_jax.training.run import RunFolder
from lstm_jax.training.state import StepMetrics, train_step
from lstm_jax.training.task import Task, first_state, make_task

_FIRST_CHARACTER = 0x4E00


@dataclass(frozen=True)
class Options(Checked):
    """Measure the overhead of the training loop over its bare training step."""

    system: Literal["lyrics", "shakespeare", "anna", "poems", "reviews"] = "lyrics"  # the preset.
    steps: Annotated[int, Bounds(2)] = 200  # steps per run, at least 2, as the first is excluded.
    rounds: Count = 3  # runs of the loop, and of the bare step.
    json: Path | None = None  # file for the row.


class Pace(NamedTuple):
    """Speed of one run without its first step: tokens per second, and seconds of each step."""

    tokens_per_second: float
    step_s: list[float]


def random_system(name: str, steps: int) -> System:
    """A preset's system on random data with texts of maximum length, and nothing held out."""
    alone: Any = dict.fromkeys(
        ("patience", "evaluate_every", "checkpoint_every", "sample_every"), 0
    )
    config = dataclasses.replace(preset_named(name), heldout_share=0.0, steps=steps, **alone)
    size = system_named(name).vocabulary_size
    characters = range(_FIRST_CHARACTER, _FIRST_CHARACTER + size)
    vocabulary = Vocabulary("char", tuple(map(chr, characters)))
    draw = np.random.default_rng(0)
    if isinstance(config, LanguageConfig):
        sizes = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
        batch = config.batch_size * config.sequence_length
        ids = draw.integers(0, size, config.characters or BATCHES * batch + 1, dtype=np.int32)
        return LanguageSystem(config, Corpus("", "", vocabulary, ids, lanes(ids, **sizes), None))
    assert isinstance(config, PoemsConfig | ReviewsConfig)
    number = BATCHES * config.batch_size
    texts = tuple(draw.integers(1, size, (number, config.length), dtype=np.int32))
    if isinstance(config, PoemsConfig):
        return PoemsSystem(config, vocabulary, "", Poems((), 0, 0, 0, 0, 0), texts, ())
    labels = draw.integers(0, 2, number, dtype=np.int32)
    nothing = Encoded((), labels[:0])
    return ReviewsSystem(config, vocabulary, "", None, Encoded(texts, labels), nothing, None)


class _Noted(Report):
    """Records the rows, and when each step was done."""

    def __init__(self) -> None:
        self.rows: list[MetricsRow] = []
        self.times: list[float] = []

    def advance(self, step: int) -> None:
        self.times.append(time.perf_counter())

    def row(self, row: MetricsRow) -> None:
        self.rows.append(row)


def loop_pace(task: Task) -> Pace:
    noted = _Noted()
    with tempfile.TemporaryDirectory(prefix="rate-") as temporary:
        folder = RunFolder(Path(temporary))
        loop.train(task, first_state(task), folder, CheckpointStore(folder.checkpoints), noted)
    return Pace(reported_rate(noted.rows), np.diff(noted.times).tolist())


def reported_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens per second from the second step on, if all steps have equally many tokens."""
    steps = np.diff([1, *(row["step"] for row in rows)])
    rates: list[float] = [row["tokens_per_second"] for row in rows]
    return statistics.harmonic_mean(rates, steps.tolist())


def bare_pace(task: Task, batches: Sequence[Any]) -> Pace:
    """Train on the batches in turn, and do nothing else."""
    state, times = first_state(task), []
    found: list[StepMetrics] = []
    for batch in batches:
        state, metrics = train_step(task.program, state, batch)
        found.append(metrics)
        if found[1:]:
            found[-2].loss.block_until_ready()
            times.append(time.perf_counter())
    found[-1].loss.block_until_ready()
    times.append(time.perf_counter())
    tokens = sum(float(each.sums.tokens) for each in found[1:])
    return Pace(tokens / (times[-1] - times[0]), np.diff(times).tolist())


def measure_rate(system: System, options: Options) -> command.Measured:
    """Measure a system of `steps` steps; its rate is the median of the runs."""
    task, feed = make_task(system), system.feed()
    batches = jax.block_until_ready([feed(step) for step in range(options.steps)])
    first_s = seconds(
        lambda: jax.block_until_ready(train_step(task.program, first_state(task), batches[0]))
    )
    loops, bare = list[Pace](), list[Pace]()
    for turn in range(options.rounds):
        for paces in (loops, bare) if turn % 2 else (bare, loops):
            paces.append(loop_pace(task) if paces is loops else bare_pace(task, batches))
    rates, bare_rates = ([each.tokens_per_second for each in paces] for paces in (loops, bare))
    ratios = [rate / other for rate, other in zip(rates, bare_rates, strict=True)]
    ratio, bare_rate = statistics.median(ratios), statistics.median(bare_rates)
    row = make_row(
        *("rate", options.system, OURS, system.config.model.compute_dtype),
        timing_of([each for pace in loops for each in pace.step_s]),
        tokens_per_second=statistics.median(rates),
        first_s=first_s,
        settings={"backend": system.config.model.backend},
        shape=to_dict(system.config) | {"vocabulary_size": len(system.vocabulary)},
        details={"bare_tokens_per_second": bare_rate, "ratio": ratio, "ratios": ratios},
    )
    print_table([row])
    print(
        f"the bare step: {bare_rate:,.0f} tokens/s; the loop reaches {ratio:.3f} of it "
        f"({', '.join(f'{each:.3f}' for each in ratios)})"
    )
    return [row], True


def main(options: Options) -> int:
    system = random_system(options.system, options.steps)
    return command.measure(
        command.Options(json=options.json), map(measure_rate, [system], [options])
    )

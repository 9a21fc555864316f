"""Long training and sampling, to see whether memory grows or the speed falls.

For half of the time a small model is trained as by `train.py`, with evaluations, checkpoints,
samples and metrics; for the other half it generates text from prompts of varying lengths. The
verdict uses the Theil-Sen slopes of resident memory and speed over the points after the first tenth
and half a minute: they grow or fall if the whole 95% interval is beyond the limit.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import theilslopes  # type: ignore[import-untyped]

from bench.memory import status_mb
from bench.plot import require_matplotlib
from bench.report import environment, writing
from lstm_jax.models import LanguageModelConfig
from lstm_jax.sampling import FREE, generate
from lstm_jax.settings import Count, Positive, check
from lstm_jax.systems import read_system
from lstm_jax.systems.base import SampleConfig
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import Report
from lstm_jax.training.plots import new_figure, open_axes
from lstm_jax.training.run import RunFolder, create_run, load
from lstm_jax.training.task import first_state, make_task

_ENDLESS = 10**9
_POINTS = 400
_WARMING_UP = 0.1
_WARMING_UP_SECONDS = 30.0
_WRITTEN, _TEXTS = 100, 4  # Tokens per text, and texts per call.


@dataclass(frozen=True)
class Options:
    """Train and sample for a while, and watch memory and speed."""

    minutes: Positive = 20.0  # total duration, half of it training.
    hidden_size: Count = 64  # hidden size of the model.
    most_mb_an_hour: Positive = 20.0  # allowed growth of memory.
    most_percent_an_hour: Positive = 10.0  # allowed loss of speed.
    json: Path | None = None  # file for the points and verdicts.
    plot: Path | None = None  # file for a picture of them.

    def __post_init__(self) -> None:
        check(self)
        require_matplotlib(self.plot)


class Point(NamedTuple):
    """A sample: seconds since the start, resident MB, operations per second since the last one."""

    seconds: float
    resident_mb: float
    rate: float


class Slope(NamedTuple):
    """Change per hour, and its 95% interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.slope:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Verdict(NamedTuple):
    """Slopes of memory, in MB, and speed, in percent; whether they exceed the limits."""

    memory: Slope
    rate: Slope
    grows: bool
    slows: bool

    def __str__(self) -> str:
        told = ["grows"] * self.grows + ["slows"] * self.slows or ["steady"]
        return f"memory {self.memory} MB/hour, rate {self.rate} %/hour: {' and '.join(told)}"


@dataclass
class Watch(Report):
    """Records memory and speed for a given time, while an operation is repeated."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    memory: Callable[[], float] = lambda: status_mb("VmRSS")

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()
        self._done, self.points = 0, list[Point]()

    def is_over(self) -> bool:
        return self.clock() - self._began >= self.seconds

    def advance(self, step: int) -> None:
        self.did(1)

    def did(self, number: int) -> None:
        self._done += number
        now = self.clock()
        if now - self._last >= self.seconds / _POINTS:
            rate = self._done / (now - self._last)
            self.points.append(Point(now - self._began, self.memory(), rate))
            self._last, self._done = now, 0


def verdict(points: Sequence[Point], *, most_mb: float, most_percent: float) -> Verdict:
    """Slopes of memory and speed, beside the hourly limits; ValueError if points are too few."""
    first = max(_WARMING_UP_SECONDS, _WARMING_UP * points[-1].seconds) if points else 0.0
    kept = [point for point in points if point.seconds >= first]
    if len(kept) < 3:
        raise ValueError(f"{len(kept)} points say nothing of a trend; give it more --minutes")
    seconds, resident, rates = np.array(kept).T
    memory, rate = (
        Slope(float(found[0]), float(found[2]), float(found[3]))
        for values in (resident, 100 * rates / np.median(rates))
        for found in [theilslopes(values, seconds / 3600, 0.95)]
    )
    return Verdict(memory, rate, memory.low > most_mb, rate.high < -most_percent)


def train_for(seconds: float, folder: RunFolder, hidden_size: int) -> list[Point]:
    config = LanguageConfig(
        data="python-docs",
        characters=200_000,
        steps=_ENDLESS,
        batch_size=16,
        sequence_length=32,
        log_every=100,
        evaluate_every=4_000,
        checkpoint_every=2_000,
        sample_every=2_000,
        sample=SampleConfig(length=50),
        model=LanguageModelConfig(hidden_size=hidden_size),
    )
    task = make_task(read_system(config))
    create_run(folder, task.system)
    watch, state = Watch(seconds), first_state(task)
    store = CheckpointStore(folder.checkpoints)
    loop.train(task, state, folder, store, watch, should_stop=watch.is_over)
    return watch.points


def sample_for(seconds: float, folder: RunFolder) -> list[Point]:
    model, params, vocabulary, _ = load(folder.path)
    text = vocabulary.encode("the statement of a function " * 3)
    watch, number = Watch(seconds), 0
    while not watch.is_over():
        prompt = text[: 1 + number % 60]
        template = np.full((len(prompt) + _WRITTEN, _TEXTS), FREE)
        template[: len(prompt)] = prompt[:, None]
        generate(model, params, template, key=jax.random.key(number), top_n=number % 7)
        watch.did(_TEXTS * _WRITTEN)
        number += 1
    return watch.points


def line_of(name: str, points: Sequence[Point], told: Verdict) -> dict[str, Any]:
    values = told._asdict() | {"memory": told.memory._asdict(), "rate": told.rate._asdict()}
    rounded = [[round(value, 3) for value in point] for point in points]
    return {"bench": "endurance", "system": name, **values, "points": rounded}


def draw(found: dict[str, list[Point]], verdicts: dict[str, Verdict], file: Path) -> None:
    figure = new_figure(8, 5)
    panels = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for column, (name, points) in zip(panels.T, found.items(), strict=True):
        told, work = verdicts[name], "tokens" if name == "sampling" else "steps"
        seconds, resident, rates = np.array(points).T
        shown = (
            ("resident MB", resident, told.memory, "MB"),
            (f"{work} a second", rates, told.rate, "%"),
        )
        for axes, (label, values, slope, unit) in zip(column, shown, strict=True):
            axes.plot(seconds / 60, values, ".", color="#0072b2", markersize=3)
            axes.set_ylim(0, 1.15 * max(values))
            axes.set_ylabel(label)
            axes.set_title(f"{name}: {slope} {unit} an hour", fontsize=9)
            open_axes(axes)
        column[-1].set_xlabel("minutes")
    figure.savefig(file)


def main(options: Options) -> int:
    seconds = 60 * options.minutes / 2
    with tempfile.TemporaryDirectory(prefix="endurance-") as temporary:
        folder = RunFolder(Path(temporary) / "run")
        found = {"training": train_for(seconds, folder, options.hidden_size)}
        found["sampling"] = sample_for(seconds, folder)
    limits = {"most_mb": options.most_mb_an_hour, "most_percent": options.most_percent_an_hour}
    verdicts = {name: verdict(points, **limits) for name, points in found.items()}
    for name, each in verdicts.items():
        print(f"{name}, {len(found[name])} points: {each}")
    shared = vars(environment()) | {"minutes": options.minutes, "limits": limits}
    with writing(options.json) as write:
        for name, points in found.items():
            write(shared | line_of(name, points, verdicts[name]))
    if options.plot is not None:
        draw(found, verdicts, options.plot)
    return int(any(each.grows or each.slows for each in verdicts.values()))

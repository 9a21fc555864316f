"""A table of finished runs of `train.py`: the result of each system, beside published figures.

A line is one setting, with the mean and range over seeds, published figures for that setting, and
the held-out loss of an n-gram on the same data and split, which is fitted if the data is there.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.baselines import ngrams, published
from bench.figures import Point, Spread, decimals, explained, figures, shown, spread
from bench.report import writing
from bench.runs import Run, differences, keep_run, number, read_run, settings
from lstm_jax.systems import presets
from lstm_jax.systems.base import TrainConfig
from lstm_jax.training.log import finite

_HEADS = ("system", "settings", "runs", "figure", "published", "n-gram", "time")
_NONE = "–"  # noqa: RUF001
_LEGEND = (
    "Of several runs, which differ in their seed: mean [lowest, highest]. n-gram: interpolated, "
    "with absolute discounting, on the same split."
)


@dataclass(frozen=True)
class Options:
    """Make a table of run folders."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders made by train.py.
    json: Path | None = None  # file for the lines, one object each.
    markdown: Path | None = None  # file for the table, in addition to standard output.
    #: folder to which each run's settings and metrics are copied, under its name; such a copy can
    #: be used as a run here, and its curves drawn.
    keep: Path | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no run to show; name one run folder or more")


@dataclass(frozen=True)
class Line:
    """Runs that differ only in their seed, all finished or none, and their figures."""

    runs: tuple[Run, ...]
    figures: dict[str, Spread]
    ngram: Spread | str | None  # held-out loss of an n-gram, or why there is none.
    order: int | None  # n.

    @property
    def config(self) -> TrainConfig:
        return self.runs[0].config

    @property
    def seconds(self) -> dict[str, float]:
        """Mean seconds of a run, by its environment."""
        by_device: defaultdict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            by_device[run.device].append(number(run.rows[-1], "seconds"))
        return {device: statistics.fmean(each) for device, each in by_device.items()}

    def cells(self) -> tuple[str, ...]:
        flags, many = " ".join(differences(self.config)), len(self.runs) > 1
        progress = [f"seed {run.config.seed} " * many + run.progress
                    for run in self.runs if run.progress]  # fmt: skip
        ngram = self.ngram or _NONE
        return (
            self.config.preset,
            f"`{flags}`" if flags else "as preset",
            "; ".join([str(len(self.runs)), *progress]),
            shown(self.figures),
            published(self.config) or _NONE,
            ngram if isinstance(ngram, str) else f"{decimals(ngram)} (n = {self.order})",
            "; ".join(f"{_duration(each)} ({device})" for device, each in self.seconds.items()),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "system": self.config.preset,
            "settings": differences(self.config),
            "runs": [str(each.path) for each in self.runs],
            "seeds": [each.config.seed for each in self.runs],
            "progress": [each.progress for each in self.runs],
            "is_finished": self.runs[0].is_finished,
            "figures": {name: found._asdict() for name, found in self.figures.items()},
            "explained": explained(self.config),
            "published": published(self.config),
            "ngram": self.ngram._asdict() if isinstance(self.ngram, Spread) else self.ngram,
            "ngram_order": self.order,
            "seconds": self.seconds,
            "data_sha256": self.runs[0].sha256,
        }


def make_lines(runs: Iterable[Run]) -> list[Line]:
    """Group runs that differ only in their seed, finished ones apart, in the presets' order."""
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        kind = [run.config.preset, run.sha256, run.is_finished, settings(run.config)]
        groups[json.dumps(kind, sort_keys=True)].append(run)
    order = {preset.preset: place for place, preset in enumerate(presets())}
    lines = map(_line, groups.values())
    return sorted(lines, key=lambda line: order.get(line.config.preset, len(order)))


def _line(runs: Sequence[Run]) -> Line:
    points: defaultdict[str, list[Point]] = defaultdict(list)
    for run in runs:
        for name, point in figures(run).items():
            points[name].append(point)
    found = {name: spread(each) for name, each in points.items()}
    baselines = ngrams(runs)
    if not isinstance(baselines, list):
        return Line(tuple(runs), found, baselines, None)
    losses = [Point(each.loss, math.nan) for each in baselines]
    return Line(tuple(runs), found, spread(losses), baselines[0].order)


def table(lines: Sequence[Line]) -> str:
    """Format the lines in Markdown, followed by an explanation of the figures."""
    rows = [_HEADS, *(line.cells() for line in lines)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    heads, *body = (f"| {' | '.join(map(str.ljust, row, widths))} |" for row in escaped)
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    about: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for line in lines:
        about[line.config.preset][explained(line.config)] = None
    notes = [f"- {system}: {'; or '.join(each)}." for system, each in about.items()]
    return "\n".join([heads, rule, *body, "", _LEGEND, "", *notes]) + "\n"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "time not recorded"
    return f"{seconds:,.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def main(options: Options) -> int:
    paths = {path.resolve(): path for path in options.runs}
    runs = list(map(read_run, paths.values()))
    if options.keep is not None:
        for path, run in zip(paths, runs, strict=True):
            keep_run(run, options.keep / path.name)
    lines = make_lines(runs)
    text = table(lines)
    print(text, end="")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")
    with writing(options.json) as write:
        for line in lines:
            write(finite(line.as_json()))
    return 0

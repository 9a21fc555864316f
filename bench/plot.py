"""Pictures of rows, for print: the benchmark that made them determines what is drawn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.peers import OURS
from bench.report import Row, read_rows
from lstm_jax.training.plots import have_matplotlib, new_figure, open_axes

_MARKERS = "osD^vP"
_LINES = ("-", "--", ":", "-.")
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito's colour-blind-safe palette; markers and dashes distinguish the lines too."""

_COMPILE = "compile time, s"
_MOST_LINEAR = 6.0  # Up to this multiple of ours, bars have a linear axis.


@dataclass(frozen=True)
class Options:
    """Draw rows that a benchmark wrote with --json."""

    rows: Annotated[tuple[Path, ...], tyro.conf.Positional]  # files with rows of one benchmark.
    output: Path = Path("bench.png")  # the picture; its suffix determines the format.

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("there is nothing to draw; name a file of rows")
        require_matplotlib(self.output)


def main(options: Options) -> int:
    draw([row for file in options.rows for row in read_rows(file)], options.output)
    return 0


def require_matplotlib(plot: Path | None) -> None:
    """Raise ValueError, before anything runs, if a plot is requested but cannot be drawn."""
    if plot is not None and not have_matplotlib():
        raise ValueError("a plot needs matplotlib; pip install 'lstm-jax[plots]'")


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the rows of one benchmark.

    Raises ValueError if the rows are of several benchmarks, or of one without pictures.
    """
    benches = {row.bench for row in rows}
    if benches == {"sample"}:
        figure = _rates([row for row in rows if row.system == row.shape.get("name")])
    elif benches == {"growth"}:
        figure = _growth(rows)
    elif benches == {"memory"}:
        figure = _bars(rows, "peak memory", lambda row: row.memory_mb or 0.0)
    elif len(benches) == 1 and benches <= {"train", "layer"}:
        figure = _bars(rows, "time", lambda row: row.median_ms)
    else:
        raise ValueError(f"rows of {', '.join(sorted(benches)) or 'no bench'} are not drawn")
    figure.savefig(file)


def _decades(axes: Any) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))


def _ticks(axes: Any, values: Iterable[int], base: int, fontsize: int | None = None) -> None:
    """Make the axis of sizes logarithmic, with a label for each size."""
    known = sorted(set(values))
    axes.set_xscale("log", base=base)
    axes.set_xticks(known, [f"{each:,}" for each in known], fontsize=fontsize)
    axes.minorticks_off()


def _rates(rows: Sequence[Row]) -> Any:
    """Tokens per second against the batch size; a panel per system, a line per implementation."""
    systems = list(dict.fromkeys(row.system for row in rows))
    styles = zip(cycle(_COLORS), cycle(_LINES), cycle(_MARKERS), strict=False)
    names = dict(zip(dict.fromkeys(row.implementation for row in rows), styles, strict=False))
    figure = new_figure(4.2 * len(systems) + 0.4, 3.8)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for axes, system in zip(panels, systems, strict=True):
        points = sorted((int(str(row.shape["batch"])), row.tokens_per_second, row.implementation)
                        for row in rows if row.system == system)  # fmt: skip
        for name, (color, line, marker) in names.items():
            batches, rates, _ = zip(*(each for each in points if each[2] == name), strict=True)
            axes.plot(batches, rates, line, color=color, marker=marker, markersize=5, label=name)
        _decades(axes)
        _ticks(axes, [batch for batch, _, _ in points], base=2)
        axes.set_xlabel("batch size")
        axes.set_title(system, fontsize=11)
        open_axes(axes)
    panels[0].set_ylabel("tokens per second")
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def _growth(rows: Sequence[Row]) -> Any:
    sizes = list(dict.fromkeys(str(row.shape["varied"]) for row in rows))
    measures: dict[str, Callable[[Row], float]] = {
        "microseconds per token": lambda row: 1e6 / row.tokens_per_second,
        "temporary memory, MB": lambda row: row.memory_mb or 0.0,
        _COMPILE: lambda row: row.compile_s,
    }
    figure = new_figure(3.0 * len(sizes) + 0.4, 7.2)
    panels = figure.subplots(len(measures), len(sizes), squeeze=False, sharex="col", sharey="row")
    for line, (label, measure) in zip(panels, measures.items(), strict=True):
        line[0].set_ylabel(label)
        for axes, size in zip(line, sizes, strict=True):
            points = {int(str(row.shape[size])): measure(row)
                      for row in rows if row.shape["varied"] == size}  # fmt: skip
            axes.plot(*zip(*points.items(), strict=True), color=_COLORS[0], marker=_MARKERS[0])
            if label == _COMPILE:
                axes.set_ylim(0, 1.1 * max(map(measure, rows)))
            else:
                _decades(axes)
            _ticks(axes, points, base=10, fontsize=8)
            open_axes(axes)
    for axes, size in zip(panels[-1], sizes, strict=True):
        axes.set_xlabel(size.replace("_", " "))
    return figure


def _bars(rows: Sequence[Row], what: str, measure: Callable[[Row], float]) -> Any:
    """Each peer's need relative to ours, one panel per dtype and one group per system."""
    dtypes, systems, names = (
        list(dict.fromkeys(getattr(row, field) for row in rows))
        for field in ("dtype", "system", "implementation")
    )
    found = {(row.dtype, row.system, row.implementation): measure(row) for row in rows}
    shares = {(d, s, n): value / found[d, s, OURS] for (d, s, n), value in found.items()}
    figure = new_figure(max(9.0, 1.4 * len(systems)), 2.7 * len(dtypes) + 0.6)
    panels = figure.subplots(len(dtypes), 1, squeeze=False, sharex=True)[:, 0]
    width = 0.8 / len(names)
    for axes, dtype in zip(panels, dtypes, strict=True):
        for number, (name, color) in enumerate(zip(names, cycle(_COLORS), strict=False)):
            offset = width * (number - (len(names) - 1) / 2)
            bars = {
                place + offset: shares[dtype, system, name]
                for place, system in enumerate(systems)
                if (dtype, system, name) in shares
            }
            drawn = axes.bar(bars.keys(), bars.values(), width, label=name, color=color)
            if name != OURS:
                axes.bar_label(drawn, fmt="%.2f", fontsize=6.5)
        axes.axhline(1, color=_COLORS[0], linewidth=0.8)
        if max(shares.values()) > _MOST_LINEAR:
            _decades(axes)
        axes.set_title(f"{dtype} products", loc="left", fontsize=10)
        axes.set_ylabel(f"{what}, lstm_jax = 1")
        axes.set_xticks(range(len(systems)), systems, fontsize=8 if len(systems) > 6 else 10)
        axes.spines[["top", "right"]].set_visible(False)
    legend = {"loc": "lower left", "bbox_to_anchor": (0.2, 1), "ncols": len(names)}
    panels[0].legend(frameon=False, fontsize=9, **legend)
    return figure

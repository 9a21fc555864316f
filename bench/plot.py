"""Plots of rows, in a form that can be read in print.

python -m bench.plot ROWS.json [ROWS.json ...] --output FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import OURS, Row
from lstm_jax.training.plots import have_matplotlib

_MARKERS = "osD^vP"
_LINES = ("-", "--", ":", "-.")
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind readers; markers and dashes tell them apart too."""


_COMPILE = "compile time, s"


def require_matplotlib(plot: Path | None) -> None:
    """Raises ValueError where a plot is asked for and cannot be drawn, before anything is run."""
    if plot is not None and not have_matplotlib():
        raise ValueError("a plot needs matplotlib; pip install 'lstm-jax[plots]'")


def draw_throughput(rows: Sequence[Row], file: Path) -> None:
    """Draws one panel a system and one line an implementation, both axes logarithmic.

    Args:
        rows: of sampling, `shape["batch"]` among what they have.
        file: where to write the picture; its suffix decides the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    systems = list(dict.fromkeys(row.system for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows))
    figure = Figure(figsize=(4.2 * len(systems) + 0.4, 3.8), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for axes, system in zip(panels, systems, strict=True):
        _panel(axes, names, [row for row in rows if row.system == system])
        axes.set_title(system, fontsize=11)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
        axes.minorticks_off()
    panels[0].set_ylabel("tokens a second")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(file)


def draw_times(rows: Sequence[Row], file: Path) -> None:
    """Draws one column a system, in it one mark an implementation, from p10 to p90.

    Args:
        rows: of any bench.
        file: where to write the picture; its suffix decides the format.
    """

    def spread(row: Row) -> tuple[float, float]:
        return row.median_ms - row.p10_ms, row.p90_ms - row.median_ms

    _draw_marks(rows, file, "milliseconds", lambda row: row.median_ms, spread)


def draw_memory(rows: Sequence[Row], file: Path) -> None:
    """Draws one column a system, in it one mark an implementation: its peak memory.

    Args:
        rows: of memory.
        file: where to write the picture; its suffix decides the format.
    """
    _draw_marks(rows, file, "peak memory, MB", lambda row: row.memory_mb or 0.0, lambda row: (0, 0))


def draw_growth(rows: Sequence[Row], file: Path) -> None:
    """Draws time a token, memory and compile time, each against the size that varies.

    Args:
        rows: of growth; `shape["varied"]` names the size, which is in `shape` too.
        file: where to write the picture; its suffix decides the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    sizes = list(dict.fromkeys(str(row.shape["varied"]) for row in rows))
    measures: dict[str, Callable[[Row], float]] = {
        "microseconds a token": lambda row: 1e6 / row.tokens_per_second,
        "temporary memory, MB": lambda row: row.memory_mb or 0.0,
        _COMPILE: lambda row: row.compile_s,
    }
    figure = Figure(figsize=(3.0 * len(sizes) + 0.4, 7.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(measures), len(sizes), squeeze=False, sharex="col", sharey="row")
    for line, (label, measure) in zip(panels, measures.items(), strict=True):
        line[0].set_ylabel(label)
        for axes, size in zip(line, sizes, strict=True):
            these = [row for row in rows if row.shape["varied"] == size]
            axes.plot(
                [int(str(row.shape[size])) for row in these],
                [measure(row) for row in these],
                color=_COLORS[0],
                marker=_MARKERS[0],
            )
            values = sorted({int(str(row.shape[size])) for row in these})
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
            if label == _COMPILE:
                axes.set_ylim(0, 1.1 * max(map(measure, rows)))
            else:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes, size in zip(panels[-1], sizes, strict=True):
        axes.set_xlabel(size.replace("_", " "))
    figure.savefig(file)


def draw_speed(rows: Sequence[Row], file: Path) -> None:
    """Draws how long each peer takes for what takes us 1, one panel a dtype and one group a system.

    Args:
        rows: of training steps, ours and peers', on one device.
        file: where to write the picture; its suffix decides the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    systems = list(dict.fromkeys(row.system for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows))
    figure = Figure(figsize=(9, 2.7 * len(dtypes) + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(dtypes), 1, squeeze=False, sharex=True)[:, 0]
    width = 0.8 / len(names)
    for axes, dtype in zip(panels, dtypes, strict=True):
        times = {
            (row.system, row.implementation): row.median_ms for row in rows if row.dtype == dtype
        }
        for number, name in enumerate(names):
            bars = [
                (place + width * (number - (len(names) - 1) / 2), times[system, name])
                for place, system in enumerate(systems)
                if (system, name) in times
            ]
            ours = [times[system, OURS] for system in systems if (system, name) in times]
            heights = [time / each for (_, time), each in zip(bars, ours, strict=True)]
            drawn = axes.bar(
                [place for place, _ in bars], heights, width, color=_COLORS[number], label=name
            )
            if name != OURS:
                axes.bar_label(drawn, [f"{height:.2f}" for height in heights], fontsize=6.5)
        axes.axhline(1, color=_COLORS[0], linewidth=0.8)
        axes.set_title(f"{dtype} products", loc="left", fontsize=10)
        axes.set_ylabel("time, lstm_jax = 1")
        axes.set_xticks(range(len(systems)), systems)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(
        frameon=False, fontsize=9, ncols=len(names), loc="lower left", bbox_to_anchor=(0.2, 1)
    )
    figure.savefig(file)


def _draw_marks(
    rows: Sequence[Row],
    file: Path,
    label: str,
    value: Callable[[Row], float],
    spread: Callable[[Row], tuple[float, float]],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = list(dict.fromkeys(row.system for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows))
    figure = Figure(figsize=(1.6 + 1.1 * len(systems), 3.8), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, name in enumerate(names):
        these = [row for row in rows if row.implementation == name]
        axes.errorbar(
            [systems.index(row.system) + 0.12 * (number - (len(names) - 1) / 2) for row in these],
            [value(row) for row in these],
            yerr=list(zip(*map(spread, these), strict=True)),
            color=_COLORS[number % len(_COLORS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="none",
            markersize=5,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.set_xticks(range(len(systems)), systems, rotation=30, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def _panel(axes: Any, names: Sequence[str], rows: Sequence[Row]) -> None:
    for number, name in enumerate(names):
        points = sorted(
            (int(str(row.shape["batch"])), row.tokens_per_second)
            for row in rows
            if row.implementation == name
        )
        axes.plot(
            [batch for batch, _ in points],
            [rate for _, rate in points],
            color=_COLORS[number % len(_COLORS)],
            linestyle=_LINES[number % len(_LINES)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            label=name,
        )
    batches = sorted({int(str(row.shape["batch"])) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("batch size")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws stored rows of `bench.train_step` as `draw_speed` does."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot")
    parser.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="what --json wrote")
    parser.add_argument("--output", type=Path, default=Path("speed.png"), help="the picture")
    options = parser.parse_args(arguments)
    require_matplotlib(options.output)
    draw_speed(
        [Row(**row) for file in options.rows for row in json.loads(file.read_text())],
        options.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

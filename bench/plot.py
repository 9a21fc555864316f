"""Tokens a second against the batch size, in a form that can be read in print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Row

_MARKERS = "osD^vP"
_LINES = ("-", "--", ":", "-.")
_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind readers; markers and dashes tell them apart too."""


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

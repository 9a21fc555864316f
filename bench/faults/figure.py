"""The curves of a run left alone, a killed and a preempted one, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder

_STYLES = (
    {"color": "#000000", "linewidth": 4, "alpha": 0.35},
    {"color": "#d55e00", "linewidth": 1.6, "linestyle": "--"},
    {"color": "#0072b2", "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 3},
)
"""A wide line below, broken ones on it: all three are seen where they are the same."""


def draw_runs(runs: Mapping[str, Path], file: Path) -> None:
    """Draws their losses against the step and, below, how far each is from the first.

    Args:
        runs: folders, by what is said of them; at most three.
        file: where to write the picture; its suffix decides the format.

    Raises:
        ValueError: they have not the same steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logs = {name: _losses(run) for name, run in runs.items()}
    first = next(iter(logs.values()))
    if any(set(log) != set(first) for log in logs.values()):
        raise ValueError("the runs have not the same rows; they cannot be compared")
    figure = Figure(figsize=(7.5, 4.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (name, log), style in zip(logs.items(), _STYLES, strict=False):
        keywords: dict[str, Any] = dict(style)
        upper.plot(list(log), list(log.values()), label=name, **keywords)
        lower.plot(list(log), [log[step] - first[step] for step in log], **keywords)
    largest = max(abs(log[step] - first[step]) for log in logs.values() for step in first)
    upper.set_ylabel("training loss\n(nats a character)")
    lower.set_ylabel("difference")
    lower.set_xlabel("step")
    lower.set_title(f"largest difference: {largest:g}", fontsize=9, loc="right")
    upper.legend(frameon=False, fontsize=9)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def _losses(run: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["loss"]) for row in read_rows(RunFolder(run).metrics)}

"""The curves of a run left alone, a killed and a preempted one, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder

_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linewidth": 4, "alpha": 0.35},
    {"color": "#d55e00", "linewidth": 1.6, "linestyle": "--"},
    {"color": "#0072b2", "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 3},
)
"""A wide line below, broken ones on it: all three are seen where they are the same."""


def draw_runs(runs: Mapping[str, Path], file: Path) -> float:
    """Draws their losses against the step and, below, how far each is from the first.

    Returns:
        The largest difference.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {name: read_rows(RunFolder(run).metrics) for name, run in runs.items()}
    logs = {name: {row["step"]: row["loss"] for row in found} for name, found in rows.items()}
    first = next(iter(logs.values()))
    largest = max(abs(log[step] - first[step]) for log in logs.values() for step in first)
    figure = Figure(figsize=(7.5, 4.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (name, log), style in zip(logs.items(), _STYLES, strict=False):
        upper.plot(list(log), list(log.values()), label=name, **style)
        lower.plot(list(log), [log[step] - first[step] for step in log], **style)
    upper.set_ylabel("training loss\n(nats a character)")
    lower.set(ylabel="difference", xlabel="step")
    lower.set_title(f"largest difference: {largest:g}", fontsize=9, loc="right")
    upper.legend(frameon=False, fontsize=9)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
    return largest

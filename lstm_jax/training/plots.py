"""Training curves, drawn if matplotlib is installed."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder

_MOST_NATS = 300.0  # above it, a diverged run's perplexity fits no axis


def have_matplotlib() -> bool:
    """Whether curves can be drawn (extra `plots`)."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw training and held-out loss and accuracy against the epoch, with one colour per run.

    Raises ValueError if a folder has no metrics.
    """
    figure = new_figure(9, 3.6, dpi=150)
    from matplotlib.ticker import LogFormatter

    logs = [read_rows(RunFolder(run).metrics) for run in runs]
    for run, rows in zip(runs, logs, strict=True):
        if not rows:
            missing = "has no metrics to draw; train it first" if run.exists() else "does not exist"
            raise ValueError(f"{run} {missing}")
    names = [run.name if len(runs) > 1 else "" for run in runs]
    left, right = figure.subplots(1, 2)
    _panel(left, names, logs, "loss")
    _panel(right, names, logs, "accuracy")
    of_tokens = any("perplexity" in rows[-1] for rows in logs)
    left.set_ylabel("loss (nats per token)" if of_tokens else "loss (nats)")
    right.set_ylabel("accuracy of the most likely token" if of_tokens else "accuracy")
    if of_tokens and left.get_ylim()[1] < _MOST_NATS:
        # matplotlib also takes the logarithm of values outside the axis.
        functions = (np.exp, lambda values: np.log(np.maximum(values, 1e-9)))
        perplexity = left.secondary_yaxis("right", functions=functions)
        perplexity.set_ylabel("perplexity")
        perplexity.set_yscale("log")
        perplexity.yaxis.set_major_formatter(LogFormatter())
        perplexity.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    figure.savefig(output)


def new_figure(width: float, height: float, dpi: int = 200) -> Any:
    """A figure of this size in inches, without a window."""
    _import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def open_axes(axes: Any) -> None:
    """Add a light grid, and remove the top and right frame."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _import_matplotlib() -> None:
    """Import it even if MPLBACKEND names a missing backend; writing a file needs no display."""
    if "matplotlib" in sys.modules or "MPLBACKEND" not in os.environ:
        return
    backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib

        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    finally:
        os.environ["MPLBACKEND"] = backend


def _panel(axes: Any, names: Sequence[str], logs: Sequence[list[Any]], metric: str) -> None:
    held_out = {"marker": "o", "markersize": 4, "linestyle": "--"}
    for number, (name, rows) in enumerate(zip(names, logs, strict=True)):
        prefix, color = f"{name}: " if name else "", f"C{number}"
        axes.plot(*_series(rows, metric), color=color, linewidth=1, label=f"{prefix}training")
        found = _series(rows, f"heldout_{metric}")
        if found[0]:
            axes.plot(*found, color=color, label=f"{prefix}held out", **held_out)
    axes.set_xlabel("epoch")
    open_axes(axes)
    axes.legend(frameon=False)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points: Iterator[Any] = ((row.get("epoch"), row.get(name)) for row in rows)
    numbers = [point for point in points if all(isinstance(each, int | float) for each in point)]
    return [epoch for epoch, _ in numbers], [value for _, value in numbers]

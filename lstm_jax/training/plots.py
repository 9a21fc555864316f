"""The curves of runs, drawn where matplotlib is present.

python -m lstm_jax.training.plots RUN [RUN ...] [--output FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lstm_jax.training.metrics import read_rows
from lstm_jax.training.run import RunFolder


def have_matplotlib() -> bool:
    """Whether curves can be drawn (the extra `plots`)."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draws training and held-out loss against the step, one colour a run.

    Raises:
        ValueError: a folder has no metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, run in enumerate(runs):
        rows = read_rows(RunFolder(run).metrics)
        if not rows:
            raise ValueError(f"{run} has no metrics to draw; train it first")
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        color = f"C{number}"
        axes.plot(*_series(rows, "loss"), color=color, linewidth=1, label=f"{prefix}training")
        heldout = _series(rows, "heldout_loss")
        if heldout[0]:
            label = f"{prefix}held out"
            axes.plot(*heldout, color=color, marker="o", markersize=4, linestyle="--", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(output)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    known = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in known], [value for _, value in known]


def main(arguments: Sequence[str] | None = None) -> int:
    """Overlays the curves of several runs in one picture."""
    parser = argparse.ArgumentParser(prog="python -m lstm_jax.training.plots")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--output", type=Path, default=Path("loss.png"), help="the picture")
    options = parser.parse_args(arguments)
    try:
        if not have_matplotlib():
            raise ValueError("curves need matplotlib; pip install 'lstm-jax[plots]'")
        draw_curves(options.runs, options.output)
    except (ValueError, OSError) as error:
        print(f"plots: error: {error}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

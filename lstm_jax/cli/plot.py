"""The command `plot`: the curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lstm_jax.cli.arguments import importing, parse


@dataclass(frozen=True)
class PlotCommand:
    """Draw loss and accuracy of several runs, in training and held out, against the epoch.

    Attributes:
        runs: folders that train.py made.
        output: the picture to write.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Path = Path("curves.png")

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no run to draw; name one run folder or more")


def plot_command(arguments: Sequence[str], prog: str = "plot") -> int:
    """Runs the command; raises ValueError for whatever the user can mend."""
    command = parse(PlotCommand, None, arguments, prog)
    with importing():
        from lstm_jax.training.plots import draw_curves, have_matplotlib

    if not have_matplotlib():
        raise ValueError("curves need matplotlib; pip install 'lstm-jax[plots]'")
    draw_curves(command.runs, command.output)
    print(command.output)
    return 0

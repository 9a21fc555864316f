"""The `plot` command: draw the curves of several runs in one picture."""

from lstm_jax.cli.options import PlotCommand
from lstm_jax.interop.files import require_target
from lstm_jax.training import plots


def run(command: PlotCommand) -> int:
    """Draw the curves; raises ValueError for user errors."""
    if not plots.have_matplotlib():
        raise ValueError("curves need matplotlib; pip install 'lstm-jax[plots]'")
    require_target(command.output, overwrite=True)
    plots.draw_curves(command.runs, command.output)
    print(command.output)
    return 0

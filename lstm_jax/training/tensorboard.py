"""Metrics and samples for TensorBoard, beside `metrics.jsonl` (the extra `tensorboard`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Self

from lstm_jax.training.metrics import Row


class TensorBoardRecorder:
    """Writes rows and samples as TensorBoard events.

    A context manager.

    Args:
        directory: where the event files go.
        first_step: events of later steps, of a run that was cut short, are hidden.

    Raises:
        ValueError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        require_tensorboard()
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def row(self, row: Row) -> None:
        """Writes each number of the row as a scalar."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Writes the sample as text."""
        self._writer.add_text(f"sample/{prompt}", text, step)


def require_tensorboard() -> None:
    """Raises ValueError, with the cure, where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard needs tensorboardX; pip install 'lstm-jax[tensorboard]'")

"""Who is told what training does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lstm_jax.training.metrics import Row


class Report(Protocol):
    """Who is told what the loop does."""

    def advance(self, step: int) -> None:
        """Training has come as far as this step."""

    def row(self, row: Row) -> None:
        """A row of metrics was written."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """The model went on from a prompt."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


class Recorder(Protocol):
    """Who keeps rows and samples for a program that shows them."""

    def row(self, row: Row) -> None:
        """A row of metrics."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model wrote."""


class Recorded:
    """Passes on to a report what it is told, rows and samples to recorders besides."""

    def __init__(self, report: Report, recorders: Sequence[Recorder]) -> None:
        self._report, self._recorders = report, recorders

    def advance(self, step: int) -> None:
        """See `Report`."""
        self._report.advance(step)

    def row(self, row: Row) -> None:
        """See `Report`."""
        for each in (*self._recorders, self._report):
            each.row(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """See `Report`."""
        for each in (*self._recorders, self._report):
            each.sample(step, prompt, text)

    def note(self, text: str) -> None:
        """See `Report`."""
        self._report.note(text)

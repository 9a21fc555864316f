"""Who is told what training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from lstm_jax.files import one_line
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
    """Passes on to a report what it is told, rows and samples to recorders besides.

    A recorder that fails, with a full disk or a server that is gone, is told nothing more.
    """

    def __init__(self, report: Report, recorders: Sequence[Recorder]) -> None:
        self._report, self._recorders = report, list(recorders)

    def advance(self, step: int) -> None:
        """See `Report`."""
        self._report.advance(step)

    def row(self, row: Row) -> None:
        """See `Report`."""
        self._record(lambda recorder: recorder.row(row))
        self._report.row(row)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """See `Report`."""
        self._record(lambda recorder: recorder.sample(step, prompt, text))
        self._report.sample(step, prompt, text)

    def note(self, text: str) -> None:
        """See `Report`."""
        self._report.note(text)

    def _record(self, write: Callable[[Recorder], None]) -> None:
        for each in list(self._recorders):
            try:
                write(each)
            except Exception as error:  # whatever comes of another program
                self._recorders.remove(each)
                self.note(
                    f"{type(each).__name__} failed ({one_line(error)}); training goes on without it"
                )

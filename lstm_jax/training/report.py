"""Who is told what training does."""

from __future__ import annotations

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

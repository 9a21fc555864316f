"""Display of training progress: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Self, TextIO, cast

from rich import progress
from rich.console import Console
from rich.segment import Segment, Segments

from lstm_jax.cli.console import Shown
from lstm_jax.training.log import Row, figure

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_OF_SILENCE = 20.0


class Display:
    """Context manager that reports to the terminal, unless it is quiet."""

    def __init__(self, first_step: int, total_steps: int, *, quiet: bool = False) -> None:
        file = cast(TextIO, Shown(sys.stdout))
        self._console = Console(file=file, soft_wrap=True, quiet=quiet)
        self._is_live = self._console.is_terminal and not quiet
        self._progress = progress.Progress(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._is_live,
        )
        self._bar = self._progress.add_task(
            "train", total=total_steps, completed=first_step, numbers="compiling"
        )
        self._total_steps = total_steps
        self._compiled: tuple[int, float] | None = None  # the first step, and its time
        self._last_line = time.monotonic() - _SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Move the live line; elsewhere, print progress now and then."""
        self._progress.update(self._bar, completed=step)
        self._compiled = self._compiled or (step, time.monotonic())
        if not self._is_live and self._silence() >= _SECONDS_OF_SILENCE:
            self._line(step, "")

    def row(self, row: Row) -> None:
        """Show a row of metrics: every evaluation, and others a few seconds apart."""
        numbers, step = _numbers(row), int(row["step"])
        self._progress.update(self._bar, numbers=numbers)
        is_due = not self._is_live and self._silence() >= _SECONDS_BETWEEN_LINES
        if is_due or "heldout_loss" in row or step == self._total_steps:
            self._line(step, f"  {numbers}")

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Show a sample."""
        self.note(f"--- sample at step {step} ---\n{text}\n---")

    def note(self, text: str) -> None:
        """Show a line unchanged; rich would interpret markup, emoji and tabs."""
        self._console.print(Segments([Segment(f"{text}\n")]))

    def _silence(self) -> float:
        return time.monotonic() - self._last_line

    def _line(self, step: int, numbers: str) -> None:
        self._last_line = time.monotonic()
        first, since = self._compiled or (step, 0.0)
        left = ""
        if not self._is_live and first < step < self._total_steps:
            seconds = (self._last_line - since) / (step - first) * (self._total_steps - step)
            left = "  {}:{:02d} left".format(*divmod(round(seconds), 60))
        self.note(f"step {step}/{self._total_steps}{numbers}{left}")


def _numbers(row: Row) -> str:
    judged_by = "perplexity" if "perplexity" in row else "accuracy"
    parts = [f"loss {figure(row['loss'])}", f"{judged_by} {figure(row[judged_by])}"]
    if "heldout_loss" in row:
        parts.append(f"held out {figure(row['heldout_loss'])}")
        parts.append(f"{judged_by} {figure(row[f'heldout_{judged_by}'])}")
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)

"""The steps since the last row of metrics: their sums, their pace, and the row they become."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from lstm_jax.training.metrics import MetricsLog, Row, part_metrics, total
from lstm_jax.training.report import Report
from lstm_jax.training.state import StepMetrics
from lstm_jax.training.task import Task


class Window:
    """Takes in steps and writes rows; what is pending travels with each checkpoint.

    Args:
        task: settings.
        log: where rows go.
        report: who is told of them.
        progress: what `progress()` gave when the checkpoint that the run goes on from was saved.

    Attributes:
        skipped_in_a_row: the latest steps of this process from which nothing could be learnt.
    """

    def __init__(
        self, task: Task, log: MetricsLog, report: Report, progress: dict[str, Any]
    ) -> None:
        self._task, self._log, self._report = task, log, report
        self._sums: dict[str, list[list[float]]] = progress.get("sums", {})
        self._grad_norms: list[float] = list(progress.get("grad_norms", []))
        self._skipped = int(progress.get("skipped", 0))
        self.skipped_in_a_row = 0
        now = time.perf_counter()
        self._began = now - float(progress.get("seconds", 0.0))
        self._clock = now  # up to here, time is accounted for
        self._pace = _Pace(*progress.get("pace", ()))

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs to write the same rows, as JSON values."""
        return {
            "sums": self._sums,
            "grad_norms": self._grad_norms,
            "seconds": time.perf_counter() - self._began,
            "skipped": self._skipped,
            "pace": self._pace.progress(),
            "log": self._log.progress(),
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training's: it does not count in the rate."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def add(
        self, step: int, metrics: StepMetrics, *, first: bool, to_be_evaluated: bool = False
    ) -> None:
        """Takes in one step and writes a row if one is due.

        Args:
            step: its number.
            metrics: what it reports.
            first: whether it is the first of this process.
            to_be_evaluated: its row waits for `write`.
        """
        found = jax.device_get(metrics)  # waits for the step
        now = time.perf_counter()
        self._pace.count(now - self._clock, float(found.sums.tokens), compiling=first)
        self._clock = now
        if math.isfinite(found.loss) and math.isfinite(found.grad_norm):
            for name, part in found.sums.parts.items():
                self._sums.setdefault(name, []).append([float(value) for value in part])
            self._grad_norms.append(float(found.grad_norm))
            self.skipped_in_a_row = 0
        else:
            self._skipped += 1
            self.skipped_in_a_row += 1
            self._report.note(f"step {step}: the loss or its gradient is not finite; skipped")
        config, batches = self._task.config, self._task.program.batches
        due = step % config.steps_of(config.log_every, batches) == 0
        if (due or step == self._task.total_steps) and not to_be_evaluated:
            self.write(step, {})
        self._report.advance(step)

    def write(self, step: int, heldout: Row) -> None:
        """Writes the row of the steps since the last one, with what evaluation found."""
        row: Row = {"step": step, "epoch": round(step / self._task.program.batches, 4)}
        with_perplexity = self._task.system.has_perplexity
        for name, steps in (self._sums or {"": []}).items():
            sums = total(steps) if steps else None
            row |= part_metrics(name, sums, with_perplexity=with_perplexity)
        row |= {
            "grad_norm": _mean(self._grad_norms),
            "learning_rate": float(self._task.learning_rate(step - 1 - self._skipped)),
            "skipped_steps": self._skipped,
            "tokens_per_second": self._pace.tokens_per_second(),
            "seconds": self._clock - self._began,
        }
        row |= heldout
        try:
            self._log.append(row)
        except OSError as error:
            self._report.note(
                f"step {step}: its row of metrics could not be written ({error}); it is kept, and "
                "written once there is space"
            )
        self._report.row(row)
        self._sums, self._grad_norms, self._pace = {}, [], _Pace()


class _Pace:
    """Tokens a second, compilation apart where there is anything else to go by."""

    def __init__(
        self,
        compiling: Iterable[tuple[float, float]] = (),
        others: Iterable[tuple[float, float]] = (),
    ) -> None:
        self._compiling, self._others = list(compiling), list(others)

    def progress(self) -> list[list[tuple[float, float]]]:
        return [self._compiling, self._others]

    def count(self, seconds: float, tokens: float, *, compiling: bool) -> None:
        (self._compiling if compiling else self._others).append((seconds, tokens))

    def tokens_per_second(self) -> float:
        steps = self._others or self._compiling
        return sum(tokens for _, tokens in steps) / max(1e-9, sum(each for each, _ in steps))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

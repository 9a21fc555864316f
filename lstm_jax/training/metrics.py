"""The run's numbers, one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, float | int | None]


def perplexity(loss: float) -> float:
    """exp(loss), the loss in nats a token; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class MetricSums(NamedTuple):
    """Sums on the host, of any number of batches; see `TokenSums`."""

    loss: float
    correct: float
    weight: float


def total(batches: Iterable[Iterable[float]]) -> MetricSums:
    """Adds up the loss, correct and weight of batches."""
    loss, correct, weight = zip(*batches, strict=True)
    return MetricSums(math.fsum(loss), math.fsum(correct), math.fsum(weight))


def part_metrics(prefix: str, sums: MetricSums | None, *, with_perplexity: bool) -> Row:
    """Mean loss in nats, accuracy and, if asked for, perplexity of sums; NaN if there are none."""
    if sums is None or not sums.weight:
        loss = accuracy = math.nan
    else:
        loss, accuracy = sums.loss / sums.weight, sums.correct / sums.weight
    row: Row = {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}
    return row | ({f"{prefix}perplexity": perplexity(loss)} if with_perplexity else {})


class MetricsLog:
    """Appends rows, each whole or absent: a torn last line is cut off when the log is opened.

    Args:
        path: `metrics.jsonl`.
        last_step: rows of later steps are dropped, as a run resumed there will write them again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Row) -> None:
        """Writes one row, through to the operating system."""
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; none if there is no file. A line that is not a whole row ends them."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _line(row: Row) -> str:
    """One line of strict JSON: a number that is not finite is written as null."""
    finite = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"

"""The run's numbers, one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lstm_jax.training.damage import set_aside

Row = dict[str, float | int | None]

_log = logging.getLogger(__name__)


def perplexity(loss: float) -> float:
    """exp(loss), the loss in nats a token; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def finite(value: Any) -> Any:
    """A value as JSON can hold it: None in place of each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def figure(number: float | int | None) -> str:
    """A number for people: four decimals or, from 100 on, five digits; - where there is none."""
    if number is None:
        return "-"
    return format(number, ".4f" if abs(number) < 100 else ".5g")


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
    """Appends rows, each whole or absent; what the file ought to hold travels with checkpoints.

    Opened again, it goes on from what the checkpoint knew of: later rows are dropped, as a run
    resumed there will write them again. Where the file is not what it was then, it is set aside,
    and those of its rows that can be read are kept.

    Args:
        path: `metrics.jsonl`.
        last_step: the checkpoint's step.
        saved: what `progress()` gave when the checkpoint was saved; None if there is none, and then
            rows are known by their steps alone.
    """

    def __init__(self, path: Path, last_step: int, saved: dict[str, Any] | None = None) -> None:
        found = path.read_bytes() if path.exists() else b""
        kept = _rows_up_to(found, last_step)
        if saved is not None:
            first = found[: saved["bytes"]]
            if len(first) == saved["bytes"] and zlib.crc32(first) == saved["crc32"]:
                kept = first
            else:
                _tell_damage(path, last_step, kept, saved["rows"])
            kept += saved["unwritten"].encode()
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(kept)
        os.replace(temporary, path)
        self._path, self._file = path, path.open("r+b", buffering=0)
        self._size, self._crc32, self._rows = len(kept), zlib.crc32(kept), kept.count(b"\n")
        self._unwritten: list[str] = []

    def append(self, row: Row) -> None:
        """Writes a row, through to the operating system.

        Raises:
            OSError: it could not be written. It is kept, and written before the next one.
        """
        self._unwritten.append(_line(row))
        self.flush()

    def flush(self) -> None:
        """Writes what could not be written before.

        Raises:
            OSError: it still can't be.
        """
        while self._unwritten:
            line = self._unwritten[0].encode()
            self._write(line)
            self._size, self._rows = self._size + len(line), self._rows + 1
            self._crc32 = zlib.crc32(line, self._crc32)
            del self._unwritten[0]

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs to know this log again, as JSON values."""
        return {
            "bytes": self._size,
            "crc32": self._crc32,
            "rows": self._rows,
            "unwritten": "".join(self._unwritten),
        }

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        """All of a line or, if that fails, none of it."""
        try:
            self._file.seek(self._size)
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None


def _rows_up_to(content: bytes, last_step: int) -> bytes:
    """The lines that are whole rows of steps up to this one."""
    kept = []
    for line in content.splitlines():
        row = _row(line)
        if row is not None and row["step"] <= last_step:
            kept.append(line + b"\n")
    return b"".join(kept)


def _tell_damage(path: Path, step: int, kept: bytes, rows: int) -> None:
    _log.warning(
        "%s is not what was written up to step %d: it is damaged, or was changed; of its %d rows "
        "the %d that can be read are kept%s",
        path,
        step,
        rows,
        kept.count(b"\n"),
        f", and the file as {set_aside(path)}" if path.exists() else "",
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; none if there is no file. A line that is not a whole row ends them."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_bytes().splitlines():
        row = _row(line)
        if row is None:
            break
        rows.append(row)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """The row that a line is; None if it is none."""
    try:
        row = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _line(row: Row) -> str:
    """One line of strict JSON."""
    return json.dumps(finite(row), allow_nan=False) + "\n"

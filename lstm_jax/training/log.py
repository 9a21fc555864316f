"""The run's numbers: what steps add up to, as rows, one JSON object a line in `metrics.jsonl`."""

import contextlib
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lstm_jax.files import set_aside, write_whole

Row = dict[str, float | int | None]

_log = logging.getLogger(__name__)


class Report(Protocol):
    """Receives what the training loop reports: progress, rows of metrics, samples, notes."""

    def advance(self, step: int) -> None:
        """A step is done."""

    def row(self, row: Row) -> None:
        """A row of metrics was written."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """The model went on from a prompt."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


class MetricSums(NamedTuple):
    """Sums on the host, of any number of batches; see `TokenSums`."""

    loss: float
    correct: float
    weight: float


def total(batches: Iterable[Iterable[float]]) -> MetricSums:
    """Adds up the loss, correct and weight of batches."""
    loss, correct, weight = zip(*batches, strict=True)
    return MetricSums(math.fsum(loss), math.fsum(correct), math.fsum(weight))


def perplexity(loss: float) -> float:
    """exp(loss), the loss in nats a token; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def part_metrics(prefix: str, sums: MetricSums | None, *, with_perplexity: bool) -> Row:
    """Mean loss in nats, accuracy and, if asked for, perplexity of sums; NaN if there are none."""
    loss = accuracy = math.nan
    if sums is not None and sums.weight:
        loss, accuracy = sums.loss / sums.weight, sums.correct / sums.weight
    row: Row = {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}
    return row | ({f"{prefix}perplexity": perplexity(loss)} if with_perplexity else {})


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


class Meter:
    """The steps since the last row: their sums, their pace, and the row that they become.

    It begins with what `progress()` gave when the checkpoint that the run goes on from was saved.
    `skipped` are all steps of the run from which nothing could be learnt.
    """

    def __init__(self, progress: dict[str, Any]) -> None:
        self._sums: dict[str, list[list[float]]] = progress.get("sums", {})
        self._grad_norms: list[float] = list(progress.get("grad_norms", []))
        self.skipped = int(progress.get("skipped", 0))
        self._clock = time.perf_counter()  # up to here, time is accounted for
        self._began = self._clock - float(progress.get("seconds", 0.0))
        # Seconds and tokens of each step: of those that compiled, and of the others.
        self._pace: list[list[tuple[float, float]]] = progress.get("pace", [[], []])

    @property
    def is_empty(self) -> bool:
        """Whether no step was taken since the last row."""
        return not (self._sums or self._grad_norms or any(self._pace))

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs to write the same rows, as JSON values."""
        return {
            "sums": self._sums,
            "grad_norms": self._grad_norms,
            "seconds": time.perf_counter() - self._began,
            "skipped": self.skipped,
            "pace": self._pace,
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training's: it does not count in the rate."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def add(
        self,
        parts: dict[str, list[float]] | None,
        grad_norm: float,
        tokens: float,
        *,
        compiled: bool,
    ) -> None:
        """Takes in a step that is done, and maybe was compiled.

        `parts` are loss, correct and weight of each part; None if the step was skipped.
        """
        now = time.perf_counter()
        self._pace[not compiled].append((now - self._clock, tokens))
        self._clock = now
        if parts is None:
            self.skipped += 1
            return
        for name, sums in parts.items():
            self._sums.setdefault(name, []).append(sums)
        self._grad_norms.append(grad_norm)

    def row(self, learning_rate: float, *, with_perplexity: bool) -> Row:
        """The row of the steps so far, after which the next one begins."""
        row: Row = {}
        for name, steps in (self._sums or {"": []}).items():
            sums = total(steps) if steps else None
            row |= part_metrics(name, sums, with_perplexity=with_perplexity)
        norms, pace = self._grad_norms, self._pace[1] or self._pace[0]
        seconds, tokens = (sum(each[k] for each in pace) for k in (0, 1))
        row |= {
            "grad_norm": math.fsum(norms) / len(norms) if norms else math.nan,
            "learning_rate": learning_rate,
            "skipped_steps": self.skipped,
            "tokens_per_second": tokens / max(1e-9, seconds),
            "seconds": self._clock - self._began,
        }
        self._sums, self._grad_norms, self._pace = {}, [], [[], []]
        return row


class MetricsLog:
    """Appends rows to a file, each whole or absent; one that finds no space waits for the next.

    Opened again, it drops the rows after `last_step`, which a run that is resumed there writes
    again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        found = path.read_bytes() if path.exists() else b""
        rows = [(line, _row(line)) for line in found.split(b"\n")]
        kept = b"".join(line + b"\n" for line, row in rows if row and row["step"] <= last_step)
        unreadable = sum(row is None for _, row in rows[:-1])  # the last one is empty, or was cut
        if unreadable:
            _log.warning(
                f"{path} is damaged, or was changed; its lines that are no rows ({unreadable}) are "
                f"left out, and the file is kept as {set_aside(path)}"
            )
        if unreadable or kept != found:
            write_whole(path, kept)
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting: list[bytes] = []

    def append(self, row: Row) -> None:
        """Writes a row, through to the operating system.

        Raises OSError where it can't be written; it is kept, and written before the next one.
        """
        self._waiting.append(json.dumps(finite(row), allow_nan=False).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes what could not be written before; raises OSError where it still can't be."""
        while self._waiting:
            size = os.fstat(self._file.fileno()).st_size
            rest = memoryview(self._waiting[0])
            try:
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            del self._waiting[0]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; none if there is no file. A line that is not a whole row ends them."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [row for row in itertools.takewhile(bool, map(_row, lines)) if row]


def _row(line: bytes) -> dict[str, Any] | None:
    """The row that a line is; None if it is none."""
    try:
        row = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None

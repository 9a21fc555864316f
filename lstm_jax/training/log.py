"""Metrics: sums over steps, and rows of them in `metrics.jsonl`, one JSON object per line."""

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
from lstm_jax.sampling import perplexity

Row = dict[str, float]

_log = logging.getLogger(__name__)


class Report(Protocol):
    """Receiver of the training loop's progress, metrics rows, samples and notes.

    Subclasses inherit methods that do nothing; what merely has the methods will do too.
    """

    def advance(self, step: int) -> None:
        """A step is done."""
        return

    def row(self, row: Row) -> None:
        """A row of metrics was written."""
        return

    def sample(self, step: int, prompt: str, text: str) -> None:
        """The model continued a prompt."""
        return

    def note(self, text: str) -> None:
        """Anything else worth reporting in a line."""
        return


class MetricSums(NamedTuple):
    """Sums over any number of batches, on the host; see `TokenSums`."""

    loss: float
    correct: float
    weight: float


def total(batches: Iterable[Iterable[float]]) -> MetricSums:
    """Add up the loss, correct and weight of batches; 0 without any."""
    return MetricSums(*map(math.fsum, zip((0.0, 0.0, 0.0), *batches, strict=True)))


def part_metrics(prefix: str, sums: MetricSums, *, with_perplexity: bool) -> Row:
    """Mean loss in nats, accuracy and optionally perplexity; NaN without weight."""
    loss = accuracy = math.nan
    if sums.weight:
        loss, accuracy = sums.loss / sums.weight, sums.correct / sums.weight
    row: Row = {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}
    return row | ({f"{prefix}perplexity": perplexity(-loss, 1)} if with_perplexity else {})


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, for JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def figure(number: float) -> str:
    """Format a number: four decimals or, from 100 on, five digits."""
    return format(number, ".4f" if abs(number) < 100 else ".5g")


class Meter:
    """Accumulates steps since the last row: their sums, speed, and the resulting row.

    A resumed run starts from the `progress()` saved with its checkpoint. `skipped` counts all
    skipped steps of the run.
    """

    def __init__(self, progress: dict[str, Any]) -> None:
        self._sums: dict[str, list[list[float]]] = progress.get("sums", {})
        self._grad_norms: list[float] = list(progress.get("grad_norms", []))
        self.skipped = int(progress.get("skipped", 0))
        self._clock = time.perf_counter()  # time up to here is accounted for
        self._began = self._clock - float(progress.get("seconds", 0.0))
        # Seconds and tokens of steps that compiled, and of the others.
        self._pace: list[list[tuple[float, float]]] = progress.get("pace", [[], []])

    @property
    def is_empty(self) -> bool:
        """Whether no step was taken since the last row."""
        return not (self._sums or self._grad_norms or any(self._pace))

    def progress(self) -> dict[str, Any]:
        """JSON values from which a resumed run continues with the same rows."""
        return {
            "sums": self._sums,
            "grad_norms": self._grad_norms,
            "seconds": time.perf_counter() - self._began,
            "skipped": self.skipped,
            "pace": self._pace,
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude time from the training speed."""
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
        """Add a finished step, which may have compiled.

        `parts` has loss, correct and weight of each part, or is None if the step was skipped.
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
        """Return the row of the steps so far, and start the next one."""
        row: Row = {}
        for name, steps in (self._sums or {"": []}).items():
            row |= part_metrics(name, total(steps), with_perplexity=with_perplexity)
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
    """Appends rows to a file, each written completely or, without space, along with the next.

    Opening it drops the rows after `last_step`, which a run resumed there writes again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        found = path.read_bytes() if path.exists() else b""
        rows = [(line, _row(line)) for line in found.split(b"\n")]
        kept = b"".join(line + b"\n" for line, row in rows if row and row["step"] <= last_step)
        unreadable = sum(row is None for _, row in rows[:-1])  # the last one is empty or truncated
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
        """Write a row, flushed to the operating system.

        Raises OSError if that fails; the row is then written before the next one.
        """
        self._waiting.append(json.dumps(finite(row), allow_nan=False).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write rows that could not be written before; raises OSError if that fails again."""
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
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log up to the first incomplete line; none if there is no file."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [row for row in itertools.takewhile(bool, map(_row, lines)) if row]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None

"""Rows of a bench: their ratios, the printed table, and the file with one row a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bench.environment import Environment, environment
from bench.peers import OURS
from bench.timing import Timing


@dataclass(frozen=True, kw_only=True)
class Row(Environment):
    """One implementation of one system, and what it ran on.

    Attributes:
        bench: the bench's name.
        system: the system's.
        implementation: ours begin with `lstm_jax`.
        dtype: of the products.
        median_ms: milliseconds of the bench's unit of work.
        p10_ms: the tenth percentile.
        p90_ms: the ninetieth.
        tokens_per_second: at the median.
        compile_s: seconds of the first call beyond the median.
        calls: how many calls were timed.
        settings: what the implementation chose.
        shape: the system's sizes.
        peers_left_out: peers that were asked for and not measured, and why.
        ratio_to_best_peer: the median of the best peer of this dtype divided by this one, so above
            1 is better than every peer; where memory is what is measured, that of memory. None for
            peers, and where none was measured.
        steps_per_second: at the median, where the bench has steps.
        limit_fraction: the time that the memory allows for a step of sampling, or that a step of
            training needs for its matrix products alone, divided by what it took.
        memory_mb: megabytes (of 10^6 bytes) that the bench says it measures.
        details: what only this bench has.
    """

    bench: str
    system: str
    implementation: str
    dtype: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens_per_second: float
    compile_s: float
    calls: int
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, object]
    peers_left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ratio_to_best_peer: float | None = None
    steps_per_second: float | None = None
    limit_fraction: float | None = None
    memory_mb: float | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is this library's."""
        return self.implementation.startswith(OURS)


def make_row(timing: Timing, *, tokens: int, first_s: float = 0.0, **fields: Any) -> Row:
    """A row from what one call took, its tokens, the seconds of the first, and fields of `Row`."""
    median_s = timing.median_ms / 1e3
    values = vars(environment()) | vars(timing) | fields
    values.setdefault("tokens_per_second", tokens / median_s)
    values.setdefault("compile_s", max(0.0, first_s - median_s))
    return Row(**values)


def with_ratios(
    rows: Sequence[Row], measure: Callable[[Row], float | None] = lambda row: row.median_ms
) -> list[Row]:
    """The rows of one system, those of ours with their ratio to the best peer of their dtype."""

    def with_ratio(row: Row) -> Row:
        peers = [measure(each) for each in rows if not each.is_ours and each.dtype == row.dtype]
        known, ours = [each for each in peers if each is not None], measure(row)
        if not (row.is_ours and known and ours):
            return row
        return dataclasses.replace(row, ratio_to_best_peer=min(known) / ours)

    return [with_ratio(row) for row in rows]


def print_environment() -> None:
    """Prints what the measurements run on."""
    found = environment()
    for title, values in (("threads", found.threads), ("versions", found.versions)):
        print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    print(f"device: {found.device}; processor: {found.processor}; load {found.load}")
    if found.is_busy:
        # Measured with both of two cores taken: PyTorch's lyrics step took 300-450 ms on two OpenMP
        # threads, which wait for each other at every barrier, and 120-160 ms on one.
        print(
            "warning: other programs are running; that slows PyTorch above all, so wait for "
            "a quiet machine before you quote these ratios"
        )


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "system": lambda row: row.system,
    "implementation": lambda row: row.implementation,
    "dtype": lambda row: row.dtype,
    "ms": lambda row: f"{row.median_ms:,.2f}",
    "p10": lambda row: f"{row.p10_ms:,.2f}",
    "p90": lambda row: f"{row.p90_ms:,.2f}",
    "tokens/s": lambda row: f"{row.tokens_per_second:,.0f}",
    "ratio": lambda row: _number(row.ratio_to_best_peer, ".2f"),
    "compile": lambda row: f"{row.compile_s:.1f} s",
    "steps/s": lambda row: _number(row.steps_per_second, ",.0f"),
    "MB": lambda row: _number(row.memory_mb, ",.1f"),
    "of limit": lambda row: _number(row.limit_fraction, ".0%"),
    "as": lambda row: row.settings.get("candidate", ""),
}
_LEFT = ("system", "implementation", "dtype", "as")


def print_table(rows: Sequence[Row]) -> None:
    """Prints one line a row; a column that no row has is left out."""
    columns = {head: [cell(row) for row in rows] for head, cell in _COLUMNS.items()}
    columns = {head: [head, *cells] for head, cells in columns.items() if any(cells)}
    for line in range(len(rows) + 1):
        padded = (
            cells[line].ljust(width) if head in _LEFT else cells[line].rjust(width)
            for head, cells in columns.items()
            for width in [max(map(len, cells))]
        )
        print("  ".join(padded).rstrip(), flush=True)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write_rows(rows: Iterable[Row], file: TextIO) -> None:
    """Writes one row a line, without what it has not, so that each is kept as soon as it is."""
    for row in rows:
        write_line({k: v for k, v in vars(row).items() if v not in (None, {})}, file)
    file.flush()


def write_line(values: Mapping[str, Any], file: TextIO) -> None:
    """Writes an object as one line of JSON."""
    file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_rows(file: Path) -> list[Row]:
    """What `write_rows` wrote; ValueError where it is something else."""
    try:
        return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what a bench wrote with --json: {error}") from None

"""Rows of a bench: their ratios, the printed table, and the JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench.environment import Environment

OURS = "lstm_jax"
"""What our implementations' names begin with."""


@dataclass(frozen=True)
class Row:
    """One implementation of one system.

    Attributes:
        bench: the bench's name.
        system: the system's.
        implementation: ours begin with `lstm_jax`.
        dtype: of the products.
        device: what it ran on.
        median_ms: milliseconds of the bench's unit of work.
        p10_ms: the tenth percentile.
        p90_ms: the ninetieth.
        tokens_per_second: at the median.
        ratio_to_best_peer: the best peer's median divided by this one, so above 1 is faster than
            every peer; None for peers, and where none was measured.
        compile_s: seconds of the first call beyond the median.
        calls: how many calls were timed.
        processor: the host's.
        threads: see `Environment`.
        versions: see `Environment`.
        load: see `Environment`; when the run began.
        settings: what the implementation chose.
        shape: the system's sizes.
        peers_left_out: peers that were asked for and not measured, and why.
    """

    bench: str
    system: str
    implementation: str
    dtype: str
    device: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens_per_second: float
    ratio_to_best_peer: float | None
    compile_s: float
    calls: int
    processor: str
    threads: Mapping[str, str]
    versions: Mapping[str, str]
    load: float
    settings: Mapping[str, str]
    shape: Mapping[str, object]
    peers_left_out: Mapping[str, str]

    @property
    def is_ours(self) -> bool:
        """Whether it is this library's."""
        return self.implementation.startswith(OURS)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows of one system, those of ours with their ratio to its fastest peer."""
    best = min((row.median_ms for row in rows if not row.is_ours), default=None)
    return [
        dataclasses.replace(row, ratio_to_best_peer=best / row.median_ms)
        if row.is_ours and best is not None
        else row
        for row in rows
    ]


def print_environment(found: Environment, out: TextIO) -> None:
    """Prints what the measurements run on."""
    for title, values in (("threads", found.threads), ("versions", found.versions)):
        print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in values.items()), file=out)
    print(f"device: {found.device}; processor: {found.processor}; load {found.load}", file=out)
    if found.is_busy:
        # Measured with both of two cores taken: PyTorch's lyrics step took 300-450 ms on two OpenMP
        # threads, which wait for each other at every barrier, and 120-160 ms on one.
        print(
            "warning: other programs are running; that slows PyTorch above all, so wait for "
            "a quiet machine before you quote these ratios",
            file=out,
        )


def print_table(rows: Iterable[Row], out: TextIO) -> None:
    """Prints one line a row."""
    heads = (
        "system",
        "implementation",
        "dtype",
        "ms",
        "p10",
        "p90",
        "tokens/s",
        "ratio",
        "compile",
    )
    lines = [heads, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        cells = (
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip(), file=out, flush=True)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio_to_best_peer is None else f"{row.ratio_to_best_peer:.2f}"
    return (
        row.system,
        row.implementation,
        row.dtype,
        f"{row.median_ms:,.2f}",
        f"{row.p10_ms:,.2f}",
        f"{row.p90_ms:,.2f}",
        f"{row.tokens_per_second:,.0f}",
        ratio,
        f"{row.compile_s:.1f} s",
    )


def write_json(rows: Iterable[Row], file: Path) -> None:
    """Writes the rows as a list of objects."""
    file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")

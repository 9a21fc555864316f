"""Rows of a bench: their ratios, the printed table, and the JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bench.environment import Environment
from bench.measure import Timing

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
        ratio_to_best_peer: the median of the best peer of this dtype divided by this one, so above
            1 is faster than every peer; None for peers, and where none was measured.
        compile_s: seconds of the first call beyond the median.
        calls: how many calls were timed.
        processor: the host's.
        threads: see `Environment`.
        versions: see `Environment`.
        load: see `Environment`; when the run began.
        settings: what the implementation chose.
        shape: the system's sizes.
        peers_left_out: peers that were asked for and not measured, and why.
        steps_per_second: at the median, where the bench has steps; else None.
        limit_fraction: the time that the memory allows for a step of sampling, or that a step of
            training needs for its matrix products alone, divided by what it took, where that was
            measured; else None.
        memory_mb: megabytes (of 10^6 bytes) that the bench says it measures; else None.
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
    steps_per_second: float | None = None
    limit_fraction: float | None = None
    memory_mb: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this library's."""
        return self.implementation.startswith(OURS)


def make_row(
    found: Environment,
    timing: Timing,
    *,
    bench: str,
    system: str,
    implementation: str,
    dtype: str,
    tokens: int,
    first_s: float,
    settings: Mapping[str, str],
    shape: Mapping[str, object],
    peers_left_out: Mapping[str, str],
) -> Row:
    """A row from what was measured, without ratio.

    Args:
        found: what it ran on.
        timing: of one call.
        bench: see `Row`, as all arguments that are not here.
        system: see there.
        implementation: see there.
        dtype: see there.
        tokens: of one call.
        first_s: seconds that the first call took.
        settings: see there.
        shape: see there.
        peers_left_out: see there.
    """
    return Row(
        bench=bench,
        system=system,
        implementation=implementation,
        dtype=dtype,
        device=found.device,
        median_ms=timing.median_ms,
        p10_ms=timing.p10_ms,
        p90_ms=timing.p90_ms,
        tokens_per_second=1e3 * tokens / timing.median_ms,
        ratio_to_best_peer=None,
        compile_s=max(0.0, first_s - timing.median_ms / 1e3),
        calls=timing.calls,
        processor=found.processor,
        threads=found.threads,
        versions=found.versions,
        load=found.load,
        settings=settings,
        shape=shape,
        peers_left_out=peers_left_out,
    )


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows of one system, those of ours with their ratio to its fastest peer."""
    return [_with_ratio(row, rows) for row in rows]


def _with_ratio(row: Row, rows: Sequence[Row]) -> Row:
    peers = [each.median_ms for each in rows if not each.is_ours and each.dtype == row.dtype]
    if not (row.is_ours and peers):
        return row
    return dataclasses.replace(row, ratio_to_best_peer=min(peers) / row.median_ms)


_HEADS = ("system", "implementation", "dtype", "ms", "p10", "p90", "tokens/s", "ratio", "compile")
_OPTIONAL: dict[str, Callable[[Row], str]] = {
    "steps/s": lambda row: "" if row.steps_per_second is None else f"{row.steps_per_second:,.0f}",
    "MB": lambda row: "" if row.memory_mb is None else f"{row.memory_mb:,.1f}",
    "of limit": lambda row: "" if row.limit_fraction is None else f"{row.limit_fraction:.0%}",
}


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


def print_table(rows: Sequence[Row], out: TextIO) -> None:
    """Prints one line a row; the optional fields only where a row has them."""
    optional = [head for head, cell in _OPTIONAL.items() if any(map(cell, rows))]
    heads = (*_HEADS, *optional)
    lines = [heads, *((*_cells(row), *(_OPTIONAL[head](row) for head in optional)) for row in rows)]
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


def collect(measured: Iterable[Sequence[Row]], file: Path | None) -> list[Row]:
    """All rows, written into the file, where there is one, as soon as each part is measured."""
    rows: list[Row] = []
    for part in measured:
        rows += part
        if file is not None:
            write_json(rows, file)
    return rows


def write_json(rows: Iterable[Row], file: Path) -> None:
    """Writes the rows as a list of objects, without optional fields that a bench has not."""
    file.write_text(json.dumps([_as_json(row) for row in rows], indent=2) + "\n")


def _as_json(row: Row) -> dict[str, Any]:
    optional = {"steps_per_second", "memory_mb"}
    return {
        name: value
        for name, value in dataclasses.asdict(row).items()
        if value is not None or name not in optional
    }

"""Rows of a benchmark: environment, ratios, printed table, and file format."""

import dataclasses
import datetime
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bench.peers import OURS
from bench.timing import Timing
from lstm_jax.cli.flags import available_cores

_PACKAGES = ("lstm-jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras", "equinox")
_VARIABLES = ("XLA_FLAGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES",
              "MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_MMAP_THRESHOLD_",
              "MALLOC_TRIM_THRESHOLD_")  # fmt: skip
_BUSY_SHARE = 0.25  # Share of the cores used by other programs above which ratios are unreliable.


@dataclass(frozen=True)
class Environment:
    """What a measurement ran on, and the date in UTC."""

    device: str
    processor: str
    threads: dict[str, str]  # cores of this process, and variables that affect their use.
    versions: dict[str, str]
    load: float  # the host's load average of the last minute, including other programs.
    date: str


@cache
def environment() -> Environment:
    """Environment of this process, with the load at the first call."""
    device, information = jax.devices()[0], Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    processor = found[1] if found else platform.processor() or platform.machine()
    kind = processor if device.platform == "cpu" else device.device_kind
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return Environment(
        device=f"{device.platform} ({kind})",
        processor=processor,
        threads={"cores": str(available_cores())} | variables,
        versions=versions,
        load=round(os.getloadavg()[0], 2),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def cpu_cores() -> int:
    """Number of cores if jax computes on the CPU; 0 if it has an accelerator."""
    return available_cores() if jax.default_backend() == "cpu" else 0


@dataclass(frozen=True, kw_only=True)
class Row(Environment):
    """One implementation of one system, and its environment; see also docs/performance.md."""

    bench: str
    system: str
    implementation: str  # name; ours begins with `lstm_jax`.
    dtype: str  # dtype of the products.
    median_ms: float  # median time of the benchmark's unit of work.
    p10_ms: float
    p90_ms: float
    tokens_per_second: float  # at the median, as is `steps_per_second`, if the benchmark has steps.
    compile_s: float
    calls: int
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: Mapping[str, object]  # the system's sizes.
    #: requested peers that were not measured, and why.
    peers_left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: compared with the best peer of this dtype, in time or in memory, whichever is measured; None
    #: for peers, or if none was measured.
    ratio_to_best_peer: float | None = None
    steps_per_second: float | None = None
    #: share of the limit: of memory in sampling, of products in training.
    limit_fraction: float | None = None
    memory_mb: float | None = None  # the benchmark's measure of memory, in 10^6 bytes.
    #: fields of this benchmark only.
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.implementation.startswith(OURS)

    def kept(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value not in (None, {})}


def make_row(
    bench: str, system: str, implementation: str, dtype: str, timing: Timing, **fields: Any
) -> Row:
    """Make a row from a call's timing, `tokens`, `first_s` of the first call, and other fields."""
    median_s, first_s = timing.median_ms / 1e3, fields.pop("first_s", 0.0)
    told: dict[str, Any] = {
        "tokens_per_second": fields.pop("tokens", 0) / median_s,
        "compile_s": max(0.0, first_s - median_s),
    }
    told |= vars(environment()) | timing._asdict() | fields
    return Row(bench=bench, system=system, implementation=implementation, dtype=dtype, **told)


def with_ratios(
    rows: Sequence[Row], measure: Callable[[Row], float] = lambda row: row.median_ms
) -> list[Row]:
    """The rows of one system, where ours have the ratio to the best peer of their dtype."""

    def with_ratio(row: Row) -> Row:
        peers = [measure(each) for each in rows if not each.is_ours and each.dtype == row.dtype]
        if not (row.is_ours and peers and measure(row)):
            return row
        return dataclasses.replace(row, ratio_to_best_peer=min(peers) / measure(row))

    return [with_ratio(row) for row in rows]


def print_environment() -> None:
    found = environment()
    for title, values in (("threads", found.threads), ("versions", found.versions)):
        print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
    print(f"device: {found.device}; processor: {found.processor}; load {found.load}")
    if found.load > _BUSY_SHARE * available_cores():
        # Measured with both of two cores busy: PyTorch's lyrics step took 300-450 ms on two OpenMP
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
    """Print one line per row, without columns that no row has."""
    columns = []
    for head, cell in _COLUMNS.items():
        if any(cells := [cell(row) for row in rows]):
            width = max(map(len, [head, *cells]))
            columns.append([f"{each:{'<' if head in _LEFT else '>'}{width}}"
                            for each in [head, *cells]])  # fmt: skip
    for line in zip(*columns, strict=True):
        print("  ".join(line).rstrip(), flush=True)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


@contextmanager
def writing(file: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes objects as JSON lines at once, or does nothing without a file."""
    if file is None:
        yield lambda values: None
        return
    with file.open("w", encoding="utf-8", buffering=1) as opened:
        yield lambda values: print(json.dumps(values, ensure_ascii=False), file=opened)


def read_rows(file: Path) -> list[Row]:
    """Read the rows of a file; raises ValueError if it holds something else."""
    try:
        return [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what a bench wrote with --json: {error}") from None

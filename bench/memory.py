"""Peak memory of a whole training step: ours beside its peers, each in a process of its own.

    python -m bench.memory [--systems anna lyrics] [--dtype bfloat16] [--steps 6] [--quick]
                           [--peers pytorch flax-nnx keras equinox] [--json FILE] [--plot FILE]

The peak is that of resident memory, compilation, weights, optimizer and batches included, less what
the process had before: imports and a step of another, tiny system (see `bench.apart`). The times
are those processes' own, one after the other: `bench.train_step` compares times. Linux only. See
`bench` for more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench import report
from bench.apart import NotRun, require_memory_status, run_apart
from bench.environment import Environment, environment
from bench.peers import PEERS, require_peers
from bench.plot import draw_memory, require_matplotlib
from bench.report import OURS
from bench.shapes import AnySystem, DType, systems_named
from lstm_jax.cli.arguments import parse, run_command

BENCH = "memory"
_QUICK_STEPS = 2


@dataclass(frozen=True)
class Options:
    """Measures the peak memory of each system's training step, ours beside its peers.

    Attributes:
        systems: which systems; none named means all, or, if quick, the first.
        dtype: of the matrix products.
        steps: steps that each process takes, at least 2.
        quick: a first look: two steps.
        json: where to write the rows.
        plot: where to draw the peaks.
        peers: which peers; one that is not installed is named and left out.
    """

    systems: tuple[str, ...] = ()
    dtype: DType = "float32"
    steps: int = 6
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; it must be at least 2, the first compiles")
        require_matplotlib(self.plot)
        require_memory_status()

    def shortened(self) -> Options:
        """What is measured: if quick, less."""
        if not self.quick:
            return self
        return dataclasses.replace(self, steps=_QUICK_STEPS)


def measure_system(
    system: AnySystem, options: Options, found: Environment, out: TextIO
) -> list[report.Row]:
    """Measures one system, and prints it; the ratios are those of memory."""
    left_out: dict[str, str] = {}
    rows: list[report.Row] = []
    for name in (OURS, *options.peers):
        try:
            apart = run_apart(system, options.dtype, name, options.steps)
        except NotRun as reason:
            left_out[name] = str(reason)
            print(f"{system.name}: {name} is left out: {reason}", file=out, flush=True)
            continue
        row = report.make_row(
            found,
            apart.timing,
            bench=BENCH,
            system=system.name,
            implementation=name,
            dtype=options.dtype,
            tokens=system.tokens_per_step,
            first_s=apart.first_s,
            settings=apart.settings,
            shape=dataclasses.asdict(system),
            peers_left_out=left_out,
        )
        rows.append(dataclasses.replace(row, memory_mb=apart.peak_mb))
    rows = [_with_ratio(row, rows) for row in rows]
    report.print_table(rows, out)
    return rows


def _with_ratio(row: report.Row, rows: Sequence[report.Row]) -> report.Row:
    peers = [each.memory_mb for each in rows if not each.is_ours and each.memory_mb is not None]
    if not (row.is_ours and peers and row.memory_mb):
        return row
    return dataclasses.replace(row, ratio_to_best_peer=min(peers) / row.memory_mb)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench."""
    options = parse(Options, None, arguments, "bench.memory").shortened()
    require_peers(options.peers)
    systems = systems_named(options.systems, quick=options.quick)
    found = environment()
    report.print_environment(found, sys.stdout)
    measured = (measure_system(system, options, found, sys.stdout) for system in systems)
    rows = report.collect(measured, options.json)
    if options.plot is not None:
        draw_memory(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("bench.memory", main))

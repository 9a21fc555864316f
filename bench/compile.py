"""How long the first training step takes: ours beside its peers, and ours against the times.

    python -m bench.compile [--systems anna lyrics] [--times 10 100 1000 20000] [--dtype bfloat16]
                            [--rounds 3] [--quick] [--peers pytorch flax-nnx keras equinox]
                            [--json FILE] [--plot FILE]

The first step of each implementation runs in a process of its own, which has trained another, tiny
system before (see `bench.apart`); it is compilation and one step. Ours alone is compiled ahead of
time, from shapes, for sequences of more and more times: that should not depend on them. See `bench`
for more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench import report
from bench.ahead import compile_ahead
from bench.apart import Apart, NotRun, require_memory_status, run_apart
from bench.environment import Environment, environment
from bench.measure import require_at_least_one, timing_of
from bench.peers import PEERS, require_peers
from bench.plot import draw_times, require_matplotlib
from bench.report import OURS
from bench.shapes import AnySystem, DType, systems_named
from lstm_jax.cli.arguments import parse, run_command

BENCH = "compile"
_QUICK_TIMES = (10, 1000)


@dataclass(frozen=True)
class Options:
    """Measures the first training step of each system, ours beside its peers.

    Attributes:
        systems: which systems; none named means all, or, if quick, the first.
        times: sequence lengths that ours is compiled for, of the first system.
        dtype: of the matrix products.
        rounds: processes, and compilations, of each.
        quick: a first look: one round, and two lengths.
        json: where to write the rows.
        plot: where to draw the times.
        peers: which peers; one that is not installed is named and left out.
    """

    systems: tuple[str, ...] = ()
    times: tuple[int, ...] = (10, 100, 1000, 20_000)
    dtype: DType = "float32"
    rounds: int = 3
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        require_at_least_one(rounds=self.rounds)
        if self.times and min(self.times) < 1:
            raise ValueError(f"times are {self.times}; each must be at least 1")
        require_matplotlib(self.plot)
        require_memory_status()

    def shortened(self) -> Options:
        """What is measured: if quick, less."""
        if not self.quick:
            return self
        times = tuple(each for each in self.times if each in _QUICK_TIMES) or self.times[:1]
        return dataclasses.replace(self, times=times, rounds=1)


def measure_first_steps(
    system: AnySystem, options: Options, found: Environment, out: TextIO
) -> list[report.Row]:
    """Measures one system's first step, and prints it."""
    left_out: dict[str, str] = {}
    aparts: dict[str, list[Apart]] = {}
    for _ in range(options.rounds):
        for name in (OURS, *options.peers):
            if name in left_out:
                continue
            try:
                apart = run_apart(system, options.dtype, name, 2)
                aparts.setdefault(name, []).append(apart)
            except NotRun as reason:
                left_out[name] = str(reason)
                aparts.pop(name, None)
                print(f"{system.name}: {name} is left out: {reason}", file=out, flush=True)
    rows = []
    for name, each in aparts.items():
        first = [apart.first_s for apart in each]
        row = _row(system, system.name, name, first, options, found)
        beyond = timing_of([apart.first_s - apart.step_s[0] for apart in each]).median_ms / 1e3
        settings = each[0].settings
        rows.append(
            dataclasses.replace(
                row, compile_s=max(0.0, beyond), settings=settings, peers_left_out=left_out
            )
        )
    rows = report.with_ratios(rows)
    report.print_table(rows, out)
    return rows


def measure_times(
    system: AnySystem, options: Options, found: Environment, out: TextIO
) -> list[report.Row]:
    """Measures how long ours takes to compile for each length, and prints it."""
    rows = []
    for times in options.times:
        longer = dataclasses.replace(system, sequence_length=times)
        took = [compile_ahead(longer, options.dtype).seconds for _ in range(options.rounds)]
        name = f"{system.name}, {times} times"
        row = _row(longer, name, OURS, took, options, found)
        rows.append(dataclasses.replace(row, compile_s=row.median_ms / 1e3))
    report.print_table(rows, out)
    return rows


def _row(
    system: AnySystem,
    name: str,
    implementation: str,
    took: list[float],
    options: Options,
    found: Environment,
) -> report.Row:
    return report.make_row(
        found,
        timing_of(took),
        bench=BENCH,
        system=name,
        implementation=implementation,
        dtype=options.dtype,
        tokens=system.tokens_per_step,
        first_s=0.0,
        settings={},
        shape=dataclasses.asdict(system),
        peers_left_out={},
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the bench."""
    options = parse(Options, None, arguments, "bench.compile").shortened()
    require_peers(options.peers)
    systems = systems_named(options.systems, quick=options.quick)
    found = environment()
    report.print_environment(found, sys.stdout)
    rows: list[report.Row] = []
    for system in systems:
        rows += measure_first_steps(system, options, found, sys.stdout)
    if systems and options.times:
        rows += measure_times(systems[0], options, found, sys.stdout)
    if options.json is not None:
        report.write_json(rows, options.json)
    if options.plot is not None:
        draw_times(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("bench.compile", main))

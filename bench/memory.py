"""Peak memory and compilation of a training step: ours beside its peers, each process fresh.

In every round each implementation starts a process of its own, which imports what it needs, makes
the weights that all start from, and trains another, tiny system for a step; only then clock and
memory are looked at. The peak is that of resident memory while the system is built and trained for
some steps, compilation included, less what the process had before. Compilation is the time of the
first step beyond a later one. Linux only.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from bench.command import Measured, OptionsWithPeers, measure
from bench.contest import with_peer
from bench.environment import Environment, cpu_cores
from bench.implementation import Implementation
from bench.peers import OURS, candidates, module_of
from bench.report import make_row, print_table, with_ratios
from bench.shapes import AnySystem, DType, System, systems_named
from bench.timing import seconds, timing_of
from bench.workers import NO_CACHE, Failed, NotRun, Server, Worker
from lstm_jax.cli.arguments import parse

_STATUS = Path("/proc/self/status")
_TINY = System("tiny", 5, "lstm", 1, 4, batch_size=2, sequence_length=3)
_QUICK_STEPS = 2


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measures memory and compilation of each system's training step, ours beside its peers.

    Attributes:
        systems: which systems; none named means all, or, if quick, the first.
        rounds: processes of each implementation.
        steps: steps that each process takes, at least 2.
    """

    systems: tuple[str, ...] = ()
    rounds: int = 3
    steps: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; it must be at least 2, the first compiles")
        _require_status()


class Steps(NamedTuple):
    """What one process found.

    Attributes:
        first_s: seconds of the first step, compilation and all.
        step_s: seconds of each later one.
        peak_mb: megabytes at the peak of building and of all steps, less what was there before.
        settings: see `Training`.
    """

    first_s: float
    step_s: list[float]
    peak_mb: float
    settings: Mapping[str, str]


def take_steps(peer: Implementation, system: AnySystem, dtype: DType, steps: int) -> Steps:
    """Trains for some steps; to be called in a process that has done nothing before."""
    params = system.initial_params()
    peer.training(_TINY, dtype, _TINY.initial_params()).step()
    gc.collect()
    _forget_peak()
    before = status_mb("VmRSS")
    training = peer.training(system, dtype, params)
    took = [seconds(training.step) for _ in range(steps)]
    peak = status_mb("VmHWM") - before
    return Steps(took[0], took[1:], max(0.0, peak), dict(training.settings))


def steps_of(name: str, system: AnySystem, dtype: DType, steps: int) -> Steps:
    """Trains in a process of its own, in the usual way of the implementation of that name.

    Raises:
        NotRun: it cannot run here.
        Failed: it ended with an error.
    """
    usual = candidates(name, "training", cpu_cores())[0]
    with closing(Worker({**usual.environment, **NO_CACHE})) as worker:
        given = (module_of(name), usual.options, system, dtype, steps)
        found: Steps = worker.ask(Server.call, with_peer, take_steps, *given)
    return found


def measure_system(
    options: Options, system: AnySystem, found: Environment, out: TextIO
) -> Measured:
    """Measures one system, and prints it; the ratios are those of memory."""
    steps = min(options.steps, _QUICK_STEPS) if options.quick else options.steps
    left_out: dict[str, str] = {}
    runs: dict[str, list[Steps]] = {name: [] for name in (OURS, *options.peers)}
    all_ran = True
    for _ in range(1 if options.quick else options.rounds):
        for name in [name for name in runs if name not in left_out]:
            try:
                runs[name].append(steps_of(name, system, options.dtype, steps))
            except (NotRun, Failed) as reason:
                all_ran &= isinstance(reason, NotRun)
                left_out[name] = str(reason)
                line = f"{system.name}: {name} is left out: {reason}"
                print(line, file=out, flush=True)
    rows = [
        make_row(
            found,
            timing_of([each for run in some for each in run.step_s]),
            bench="memory",
            system=system.name,
            implementation=name,
            dtype=options.dtype,
            tokens=system.tokens_per_step,
            compile_s=statistics.median(max(0.0, run.first_s - run.step_s[0]) for run in some),
            memory_mb=statistics.median(run.peak_mb for run in some),
            details={"first_s": statistics.median(run.first_s for run in some)},
            settings=some[0].settings,
            shape=dataclasses.asdict(system),
            peers_left_out=left_out,
        )
        for name, some in runs.items()
        if name not in left_out
    ]
    rows = with_ratios(rows, lambda row: row.memory_mb)
    print_table(rows, out)
    first = {row.implementation: row.details["first_s"] for row in rows}
    ours, others = first.pop(OURS), first.values()
    beside = f", that of the fastest peer {min(others):.2f} s" if others else ""
    print(f"our first step takes {ours:.2f} s{beside}", file=out, flush=True)
    return rows, all_ran


def _require_status() -> None:
    if not _STATUS.exists():
        raise ValueError(f"there is no {_STATUS}; a process's memory is only read on Linux")


def _forget_peak() -> None:
    """Lets the peak of resident memory begin anew, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def status_mb(name: str) -> float:
    """A number of this process's status, such as VmRSS, what it has in memory.

    Raises:
        ValueError: this system doesn't say.
    """
    _require_status()
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / 1e6
    raise ValueError(f"{_STATUS} has no {name}")


def main(arguments: Sequence[str]) -> int:
    """Runs the bench."""
    options = parse(Options, None, arguments, "bench memory")
    systems = systems_named(options.systems, quick=options.quick)

    def parts(found: Environment) -> Iterator[Measured]:
        for system in systems:
            yield measure_system(options, system, found, sys.stdout)

    return measure(options, parts)

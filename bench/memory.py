"""Peak memory and compilation time of a training step, ours and its peers, in fresh processes.

In every round each implementation starts a process, makes the common initial weights, and trains
another, tiny system for one step. The peak is of resident memory while the system is then built and
trained for some steps, minus the memory before. Compilation is the extra time of the first step.
"""

import dataclasses
import gc
import re
import statistics
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from bench.command import Measured, OptionsWithPeers, measure
from bench.contest import LeftOut, with_peer
from bench.peers import OURS, Implementation, candidates
from bench.report import cpu_cores, make_row, print_table, with_ratios
from bench.shapes import AnySystem, DType, System, systems_named
from bench.timing import seconds, timing_of
from bench.workers import NO_CACHE, Reason, Server, Worker
from lstm_jax.settings import Bounds, Count

STATUS = Path("/proc/self/status")
_TINY = System("tiny", 5, "lstm", 1, 4, batch_size=2, sequence_length=3)
_QUICK_STEPS = 2


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measure memory and compilation of each system's training step, ours and its peers."""

    systems: tuple[str, ...] = ()  # systems to measure; by default all, or with `quick` the first.
    rounds: Count = 3  # processes per implementation.
    steps: Annotated[int, Bounds(2)] = 6  # steps per process, at least 2, as the first compiles.

    def __post_init__(self) -> None:
        super().__post_init__()
        status_mb("VmRSS")


class Steps(NamedTuple):
    """Results of one process; the peak covers building and all steps, minus the memory before."""

    first_s: float
    step_s: list[float]
    peak_mb: float
    settings: Mapping[str, str]


def take_steps(peer: Implementation, system: AnySystem, dtype: DType, steps: int) -> Steps:
    params = system.initial_params()
    peer.training(_TINY, dtype, _TINY.initial_params()).step()
    gc.collect()
    with suppress(OSError):  # resets the peak, if the system allows it
        Path("/proc/self/clear_refs").write_text("5")
    before = status_mb("VmRSS")
    training = peer.training(system, dtype, params)
    took = [seconds(training.step) for _ in range(steps)]
    peak = status_mb("VmHWM") - before
    return Steps(took[0], took[1:], max(0.0, peak), dict(training.settings))


def steps_of(name: str, system: AnySystem, dtype: DType, steps: int) -> Steps:
    usual = candidates(name, "memory", cpu_cores())[0]
    take = partial(take_steps, system=system, dtype=dtype, steps=steps)
    with closing(Worker({**usual.environment, **NO_CACHE})) as worker:
        found: Steps = worker.ask(Server.call, with_peer, take, name, usual.options)
    return found


def measure_system(options: Options, system: AnySystem) -> Measured:
    """Measure and print one system; the ratios are of memory."""
    steps = min(options.steps, _QUICK_STEPS) if options.quick else options.steps
    left_out = LeftOut(system.name)
    runs: dict[str, list[Steps]] = {name: [] for name in (OURS, *options.peers)}
    for _ in range(1 if options.quick else options.rounds):
        for name in [each for each in runs if each not in left_out]:
            try:
                runs[name].append(steps_of(name, system, options.dtype, steps))
            except Reason as reason:
                left_out.add(name, reason)
    rows = [
        make_row(
            *("memory", system.name, name, options.dtype),
            timing_of([each for run in some for each in run.step_s]),
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
    rows = with_ratios(rows, lambda row: row.memory_mb or 0.0)
    print_table(rows)
    ours, *others = (row.details["first_s"] for row in rows)
    beside = f", that of the fastest peer {min(others):.2f} s" if others else ""
    print(f"our first step takes {ours:.2f} s{beside}", flush=True)
    return rows, left_out.all_agree


def status_mb(name: str) -> float:
    """A number from this process's status, such as VmRSS; raises ValueError if unreadable."""
    text = STATUS.read_text() if STATUS.exists() else ""
    found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{STATUS} has no {name}; a process's memory is only read on Linux")
    return int(found[1]) * 1024 / 1e6


def main(options: Options) -> int:
    systems = systems_named(options.systems, quick=options.quick)
    return measure(options, (measure_system(options, system) for system in systems))

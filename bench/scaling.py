"""Weak scaling: processes that train together, compared with as many that train alone.

Each process has one core, one thread, and the system's whole batch as its share. In each round all
take some steps alone, at the same time, then as many in a common run; the efficiency is the time of
the former over that of the latter, 1 if communication is free.
"""

import dataclasses
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from bench import command
from bench.ours import training_on
from bench.peers import OURS
from bench.report import make_row, print_table
from bench.shapes import AnySystem, DType, systems_named
from bench.timing import seconds, timing_of
from bench.workers import NO_CACHE, Server, Worker
from lstm_jax import sharding
from lstm_jax.cli.flags import available_cores, splitting
from lstm_jax.settings import Count

ALONE, TOGETHER = f"{OURS}, alone", f"{OURS}, together"


@dataclass(frozen=True)
class Options(command.Options):
    """Measure the cost of processes training together."""

    systems: tuple[str, ...] = ()  # systems to measure; by default all, or with `quick` the first.
    processes: Count = 2  # number of processes, each on its own core.
    steps: Count = 3  # steps per round.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.processes <= available_cores():
            raise ValueError(
                f"processes is {self.processes}; each takes a core, so choose 2 to "
                f"{available_cores()} here"
            )


def start(number: int, count: int, address: str) -> None:
    """Make this process one of several, on its own core; JAX must not have started."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    jax.config.update("jax_enable_preemption_service", False)  # or SIGTERM would not end it
    jax.distributed.initialize(address, count, number)


def time_rounds(system: AnySystem, dtype: DType, rounds: int, steps: int) -> list[list[float]]:
    """Seconds per step, alone and together, in each round; common steps also synchronise."""
    params, count = system.initial_params(), jax.process_count()
    larger = dataclasses.replace(system, batch_size=count * system.batch_size)
    alone = jax.make_mesh((1,), (sharding.DATA_AXIS,), devices=jax.local_devices())
    together = sharding.data_mesh(count, larger.batch_size)
    both = [
        training_on(each, dtype, params, mesh).step
        for each, mesh in ((system, alone), (larger, together))
    ]

    def some(step: Callable[[], object]) -> None:
        for _ in range(steps):
            step()

    took = [[seconds(partial(some, each)) / steps for each in both] for _ in range(rounds + 1)]
    return took[1:]  # the first compiles


def scale(system: AnySystem, options: Options) -> command.Measured:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    count = options.processes
    run = partial(time_rounds, system, options.dtype, options.turns, options.steps)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))
        environment = NO_CACHE | splitting(1)
        workers = [stack.enter_context(closing(Worker(environment))) for _ in range(count)]
        starts = [partial(start, number, count, address) for number in range(count)]
        for functions in (starts, [run] * count):
            found = list(pool.map(Worker.ask, workers, [Server.call] * count, functions))
    took = np.max(found, axis=0)  # the slowest in each round
    p10, median, p90 = (float(p) for p in np.percentile(took[:, 0] / took[:, 1], (10, 50, 90)))
    efficiency = {"median": median, "p10": p10, "p90": p90}
    rows = [
        make_row(
            *("scaling", system.name, name, options.dtype, timing_of(list(took[:, column]))),
            tokens=count * system.tokens_per_step,
            compile_s=0.0,
            shape=dataclasses.asdict(system),
            details={"processes": count, "efficiency": efficiency},
        )
        for column, name in enumerate((ALONE, TOGETHER))
    ]
    print_table(rows)
    print(
        f"{system.name}: {count} processes together reach {median:.3f} of their speed alone "
        f"({p10:.3f} to {p90:.3f}, {options.turns} rounds)"
    )
    return rows, True


def main(options: Options) -> int:
    systems = systems_named(options.systems, quick=options.quick)
    return command.measure(options, (scale(system, options) for system in systems))

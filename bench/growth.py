"""Scaling of our training step: time per token, memory and compile time against T, B, H, V, remat.

One layer on one-hot tokens, with each size varied alone. Time per token is that of the whole step
divided by its tokens. Memory is what the compiled step takes besides its arguments and results.
"""

import dataclasses
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import jax
import numpy as np

from bench import command
from bench.ours import epoch, make_program, require_layer, step_shapes
from bench.peers import OURS
from bench.report import Row, make_row, print_table
from bench.shapes import LayerShape, System
from bench.timing import Visit, take_turns
from bench.workers import NO_CACHE, Server, Worker
from lstm_jax.cells import CellName
from lstm_jax.recurrence import Backend
from lstm_jax.settings import Count
from lstm_jax.training.state import init_state

SizeName = Literal["sequence_length", "batch_size", "hidden_size", "vocabulary_size", "remat"]

BASE = System("growth", 100, "lstm", 1, 128, batch_size=16, sequence_length=50)
SIZES: Mapping[str, tuple[int, ...]] = {
    "sequence_length": (10, 100, 1_000, 5_000, 20_000),
    "batch_size": (1, 4, 16, 64, 256, 1_024),
    "hidden_size": (32, 128, 512, 2_048),
    "vocabulary_size": (100, 1_000, 10_000, 100_000),
    "remat": (100, 1_000, 20_000),
}
"""The sizes to vary and their values; only the first two with `quick`."""
BASES = {"remat": dataclasses.replace(BASE, sequence_length=20_000)}
"""Other sizes that differ from `BASE`; a chunk as long as the sequence keeps everything."""
_QUICK_VALUES = 2


@dataclass(frozen=True)
class Options(command.Options):
    """Measure how our training step scales with each size."""

    rounds: Count = 5  # number of turns, each a quarter of a second or one call.
    cell: CellName = "lstm"  # the recurrent cell.
    backend: Backend = "auto"  # implementation of the recurrence.
    sizes: tuple[SizeName, ...] = ()  # sizes to vary; all if none are given.


def measure_point(size: str, value: int, options: Options) -> Row:
    """Measure one value of one size, compiled without caches."""
    changed: dict[str, Any] = {"cell": options.cell, "backend": options.backend, size: value}
    system = dataclasses.replace(BASES.get(size, BASE), **changed)
    sizes = (system.sequence_length, system.batch_size, system.input_size, system.hidden_size)
    require_layer(LayerShape(system.cell, *sizes, system.backend), options.dtype)
    jax.clear_caches()
    began = time.perf_counter()
    lower, *given = step_shapes(system, options.dtype)
    run = lower(*given).compile()
    compile_s = time.perf_counter() - began
    program, batches = make_program(system, options.dtype), cycle(epoch(system))
    state = init_state(program, np.uint32(0))

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(run(state, next(batches)))

    (timing,) = take_turns({OURS: Visit(step)}, 1 if options.quick else options.rounds).values()
    return make_row(
        *("growth", f"{size.replace('_', ' ')} {value}", OURS, options.dtype, timing),
        tokens=system.tokens_per_step,
        compile_s=compile_s,
        memory_mb=run.memory_analysis().temp_size_in_bytes / 1e6,
        settings={"backend": system.backend},
        shape=dataclasses.asdict(system) | {"varied": size},
    )


def measure_size(worker: Worker, size: str, options: Options) -> command.Measured:
    values = SIZES[size][:_QUICK_VALUES] if options.quick else SIZES[size]
    rows: list[Row] = [
        worker.ask(Server.call, measure_point, size, value, options) for value in values
    ]
    print_table(rows)
    *chunks, whole = rows
    for row in chunks if size == "remat" else ():
        memory = (row.memory_mb or 0.0) / (whole.memory_mb or 1.0)
        took, than = row.median_ms / whole.median_ms, whole.system
        print(f"{row.system}: {memory:.3f} of the memory, {took:.2f} of the time of {than}")
    return rows, True


def main(options: Options) -> int:
    with closing(Worker(NO_CACHE)) as worker:
        sizes = options.sizes or SIZES
        return command.measure(options, (measure_size(worker, size, options) for size in sizes))

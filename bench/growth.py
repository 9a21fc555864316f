"""How our training step grows: time a token, memory and compile time against T, B, H, V and remat.

    python -m bench.growth [--rounds 5] [--dtype bfloat16] [--quick] [--json FILE]
                           [--plot docs/images/growth.png]

One layer of an LSTM on one-hot tokens, each size varied alone. Time a token is that of the whole
step over all its tokens; memory is what the compiled step takes beside its arguments and results,
as XLA tells; compile time is that ahead of time, from shapes. See `bench` for more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import jax

from bench import report
from bench.ahead import Compiled, compile_ahead
from bench.environment import Environment, environment
from bench.measure import interleave, require_at_least_one
from bench.ours import epoch, first_state, make_program
from bench.plot import draw_growth, require_matplotlib
from bench.report import OURS
from bench.shapes import BATCHES, DType, System
from lstm_jax.cli.arguments import parse, run_command

BENCH = "growth"
BASE = System("growth", 100, "lstm", 1, 128, batch_size=16, sequence_length=50)
SIZES: Mapping[str, tuple[int, ...]] = {
    "sequence_length": (10, 100, 1_000, 5_000, 20_000),
    "batch_size": (1, 4, 16, 64, 256, 1_024),
    "hidden_size": (32, 128, 512, 2_048),
    "vocabulary_size": (100, 1_000, 10_000, 100_000),
    "remat": (100, 1_000, 20_000),
}
"""The sizes that vary, and their values."""
BASES = {"remat": dataclasses.replace(BASE, sequence_length=20_000)}
"""The other sizes where they are not `BASE`; a chunk as long as the sequence keeps everything."""
_QUICK_VALUES = 2
_QUICK_ROUNDS = 1


@dataclass(frozen=True)
class Options:
    """Measures how our training step grows with each size.

    Attributes:
        dtype: of the matrix products.
        rounds: turns of about a quarter of a second, or one call, of each.
        quick: a first look: one round of the two smallest values of each size.
        json: where to write the rows.
        plot: where to draw them.
    """

    dtype: DType = "float32"
    rounds: int = 5
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        require_at_least_one(rounds=self.rounds)
        require_matplotlib(self.plot)

    def shortened(self) -> Options:
        """What is measured: if quick, less."""
        return dataclasses.replace(self, rounds=_QUICK_ROUNDS) if self.quick else self

    def values(self, size: str) -> tuple[int, ...]:
        """Of a size that varies."""
        return SIZES[size][:_QUICK_VALUES] if self.quick else SIZES[size]


class _Steps:
    """A compiled step on the system's batches, one after the other."""

    def __init__(self, system: System, compiled: Compiled, dtype: DType) -> None:
        program = make_program(system, dtype)
        self._run, self._data, self._index = compiled.run, epoch(system), 0
        self._state = first_state(program, system.initial_params(), system.batch_size)

    def step(self) -> None:
        done = self._run(self._state, self._data[self._index])
        self._state, _ = jax.block_until_ready(done)
        self._index = (self._index + 1) % BATCHES


def measure_point(
    size: str, value: int, options: Options, found: Environment, base: System | None = None
) -> report.Row:
    """Measures one value of one size.

    Args:
        size: the size that varies, of `SIZES`.
        value: its value.
        options: all but `quick`, `json` and `plot`.
        found: what the process runs on.
        base: the other sizes.
    """
    base = base or BASES.get(size, BASE)
    system = dataclasses.replace(base, **{size: value})  # type: ignore[arg-type]
    compiled = compile_ahead(system, options.dtype)
    steps = _Steps(system, compiled, options.dtype)
    (timing,) = interleave({OURS: steps.step}, options.rounds).values()
    row = report.make_row(
        found,
        timing,
        bench=BENCH,
        system=f"{size.replace('_', ' ')} {value}",
        implementation=OURS,
        dtype=options.dtype,
        tokens=system.tokens_per_step,
        first_s=0.0,
        settings={"backend": "auto"},
        shape=dataclasses.asdict(system) | {"varied": size},
        peers_left_out={},
    )
    return dataclasses.replace(row, compile_s=compiled.seconds, memory_mb=compiled.temporary_mb)


def measure_size(size: str, options: Options, found: Environment, out: TextIO) -> list[report.Row]:
    """Measures all values of one size, and prints them."""
    rows = [measure_point(size, value, options, found) for value in options.values(size)]
    report.print_table(rows, out)
    if size == "remat":
        _print_shares(rows, out)
    return rows


def _print_shares(rows: Sequence[report.Row], out: TextIO) -> None:
    """What each chunk takes of what the longest does."""
    *chunks, whole = rows
    for row in chunks:
        assert row.memory_mb is not None
        assert whole.memory_mb
        print(
            f"{row.system}: {row.memory_mb / whole.memory_mb:.3f} of the memory and "
            f"{row.median_ms / whole.median_ms:.2f} of the time of {whole.system}",
            file=out,
        )


def main(arguments: Sequence[str]) -> int:
    """Runs the bench."""
    options = parse(Options, None, arguments, "bench.growth").shortened()
    found = environment()
    report.print_environment(found, sys.stdout)
    measured = (measure_size(size, options, found, sys.stdout) for size in SIZES)
    rows = report.collect(measured, options.json)
    if options.plot is not None:
        draw_growth(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("bench.growth", main))

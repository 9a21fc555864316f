"""A bare recurrent layer, forward and backward: ours beside its peers.

    python -m bench.layer [--cells lstm gru] [--shapes 100,100,512,512 20,512,64,64] [--rounds 20]
                          [--dtype bfloat16] [--quick] [--json FILE] [--plot FILE]
                          [--peers pytorch flax-nnx keras equinox]

One call computes the outputs, and from a gradient of theirs those of the inputs, of the initial
carry and of all weights. Shapes are T,B,D,H: times, batch, input size, hidden size. All start from
the same arrays and are timed in turns in one run; before that, each one's gradients have to be
ours. See `bench` for more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench import report
from bench.agreement import Disagreement, require_same_gradients
from bench.environment import Environment, environment
from bench.implementation import LayerImplementation, LayerPass
from bench.jax_layer import OurLayer
from bench.measure import interleave, seconds
from bench.peers import LAYER_PEERS, find_installed, layer_peer_named
from bench.plot import draw_times, require_matplotlib
from bench.products import Floor, products_of_layer, with_limit
from bench.shapes import DType, LayerShape, RecurrentCell
from lstm_jax.cli.arguments import parse, run_command

BENCH = "layer"
SHAPES = (
    "100,100,512,512",
    "35,32,256,256",
    "50,64,1024,1024",
    "80,128,100,64",
    "1000,1,128,128",
    "20,512,64,64",
)
_QUICK_ROUNDS = 2
_DISAGREES = 1


@dataclass(frozen=True)
class Options:
    """Measures a layer's forward and backward pass, ours beside its peers.

    Attributes:
        cells: which cells.
        shapes: T,B,D,H each.
        dtype: of the matrix products.
        rounds: turns of about a quarter of a second, or one call, that each implementation has.
        quick: a first look: few rounds, and only the shape with the least work.
        json: where to write the rows.
        plot: where to draw the times.
        peers: which peers; one that is not installed is named and left out.
    """

    cells: tuple[RecurrentCell, ...] = ("lstm", "gru")
    shapes: tuple[str, ...] = SHAPES
    dtype: DType = "float32"
    rounds: int = 20
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    peers: tuple[str, ...] = tuple(LAYER_PEERS)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        if not self.cells or not self.shapes:
            raise ValueError("there is nothing to measure; name a cell and a shape")
        for shape in self.shapes:
            _sizes(shape)
        require_matplotlib(self.plot)

    def layers(self) -> list[LayerShape]:
        """What is measured."""
        found = [LayerShape(cell, *_sizes(shape)) for shape in self.shapes for cell in self.cells]
        if not self.quick:
            return found
        least = min(each.products_size for each in found)
        return [each for each in found if each.products_size == least]


def _sizes(shape: str) -> tuple[int, int, int, int]:
    parts = shape.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"a shape is {shape!r}; expected four sizes T,B,D,H, such as {SHAPES[0]}")
    times, batch, inputs, hidden = map(int, parts)
    return times, batch, inputs, hidden


class _Contest:
    """One layer, and who takes part in measuring it."""

    def __init__(self, shape: LayerShape, dtype: DType, left_out: Mapping[str, str]) -> None:
        self.left_out = dict(left_out)
        self.disagrees = False
        self._shape, self._dtype, self._work = shape, dtype, shape.work()
        self._passes: dict[str, LayerPass] = {}
        self._first_s: dict[str, float] = {}
        self._ours = self._take(OurLayer()).gradients()

    def admit(self, peer: LayerImplementation) -> None:
        """Takes a peer in, or leaves it out if its gradients are not ours."""
        try:
            require_same_gradients(self._take(peer).gradients(), self._ours, self._dtype)
        except Disagreement as reason:
            self.disagrees = True
            self._leave_out(peer.name, f"does other work: {reason}")
        except ValueError as reason:
            self._leave_out(peer.name, f"cannot run here: {reason}")

    def measure(self, rounds: int, found: Environment) -> list[report.Row]:
        """Times all that were taken in."""
        floor = Floor(products_of_layer(self._shape), self._dtype)
        calls = {name: each.run for name, each in self._passes.items()}
        timings = interleave(calls | floor.calls, rounds)
        rows = [
            report.make_row(
                found,
                timings[name],
                bench=BENCH,
                system=self._shape.name,
                implementation=name,
                dtype=self._dtype,
                tokens=self._shape.times * self._shape.batch,
                first_s=self._first_s[name],
                settings=self._passes[name].settings,
                shape=dataclasses.asdict(self._shape),
                peers_left_out=self.left_out,
            )
            for name in calls
        ]
        return report.with_ratios([with_limit(row, floor, timings) for row in rows])

    def _take(self, implementation: LayerImplementation) -> LayerPass:
        built = implementation.build(self._shape, self._dtype, self._work)
        self._first_s[implementation.name] = seconds(built.run)
        self._passes[implementation.name] = built
        return built

    def _leave_out(self, name: str, reason: str) -> None:
        self._passes.pop(name, None)
        self.left_out[name] = reason


def measure_layer(
    shape: LayerShape, options: Options, found: Environment, out: TextIO
) -> tuple[list[report.Row], bool]:
    """Measures one layer, and prints it.

    Args:
        shape: its shape.
        options: all but `cells`, `shapes`, `json` and `plot`.
        found: what the process runs on.
        out: where to print.

    Returns:
        The rows, and whether every peer that is installed did the same work as ours.
    """
    installed, missing = find_installed(options.peers, layer_peer_named)
    contest = _Contest(shape, options.dtype, missing)
    for peer in installed:
        contest.admit(peer)
    for name, reason in contest.left_out.items():
        print(f"{shape.name}: {name} is left out: {reason}", file=out, flush=True)
    rounds = min(options.rounds, _QUICK_ROUNDS) if options.quick else options.rounds
    rows = contest.measure(rounds, found)
    report.print_table(rows, out)
    return rows, not contest.disagrees


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench.layer")
    found = environment()
    report.print_environment(found, sys.stdout)
    rows: list[report.Row] = []
    all_agree = True
    for shape in options.layers():
        measured, agrees = measure_layer(shape, options, found, sys.stdout)
        rows += measured
        all_agree &= agrees
        if options.json is not None:
            report.write_json(rows, options.json)
    if options.plot is not None:
        draw_times(rows, options.plot)
    return 0 if all_agree else _DISAGREES


if __name__ == "__main__":
    sys.exit(run_command("bench.layer", main))

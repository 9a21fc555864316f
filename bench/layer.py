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

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench import report
from bench.agreement import require_same_gradients
from bench.contest import QUICK_ROUNDS, Built, Contest, Measured, keep
from bench.environment import Environment, environment
from bench.implementation import LayerImplementation
from bench.jax_layer import OurLayer
from bench.measure import require_at_least_one
from bench.peers import LAYER_PEERS, find_installed, layer_peer_named
from bench.plot import require_matplotlib
from bench.products import products_of_layer
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
        require_at_least_one(rounds=self.rounds)
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


def measure_layer(shape: LayerShape, options: Options, found: Environment, out: TextIO) -> Measured:
    """Measures one layer, and prints it.

    Args:
        shape: its shape.
        options: all but `cells`, `shapes`, `json` and `plot`.
        found: what the process runs on.
        out: where to print.
    """
    work = shape.work()

    def build(implementation: LayerImplementation) -> Built:
        layer = implementation.build(shape, options.dtype, work)
        return Built(layer.run, layer.settings, layer.gradients)

    rounds = min(options.rounds, QUICK_ROUNDS) if options.quick else options.rounds
    peers = find_installed(options.peers, layer_peer_named)
    tokens, products = shape.times * shape.batch, products_of_layer(shape)
    contest = Contest(BENCH, shape, options.dtype, tokens, products, build, require_same_gradients)
    return contest.measure(OurLayer(), peers, rounds, found, out)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench.layer")
    found = environment()
    report.print_environment(found, sys.stdout)
    measured = (measure_layer(shape, options, found, sys.stdout) for shape in options.layers())
    return keep(measured, options.json, options.plot)


if __name__ == "__main__":
    sys.exit(run_command("bench.layer", main))

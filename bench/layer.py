"""A bare recurrent layer, forward and backward: ours beside its peers.

One call computes the outputs, and from a gradient of theirs those of the inputs, of the initial
carry and of all weights. Shapes are T,B,D,H: times, batch, input size, hidden size. All start from
the same arrays; before they are timed, each one's gradients have to be ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from bench.agreement import gradients, require_same_gradients
from bench.command import OptionsWithPeers
from bench.contest import Check, Work, run
from bench.implementation import Implementation
from bench.products import products_of_layer
from bench.shapes import DType, LayerShape
from bench.workers import Built
from lstm_jax.cells import CellName, cell_named
from lstm_jax.cli.arguments import parse
from lstm_jax.recurrence import Backend, require_backend

SHAPES = (
    "100,100,512,512",
    "35,32,256,256",
    "50,64,1024,1024",
    "80,128,100,64",
    "1000,1,128,128",
    "20,512,64,64",
)


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measures a layer's forward and backward pass, ours beside its peers.

    If quick, only the shape with the least work is measured.

    Attributes:
        cells: which cells; the peers have those of PyTorch, lstm and gru, alone.
        backends: how ours is run.
        shapes: T,B,D,H each.
    """

    cells: tuple[CellName, ...] = ("lstm", "gru")
    backends: tuple[Backend, ...] = ("auto",)
    shapes: tuple[str, ...] = SHAPES

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers():
            raise ValueError("there is nothing to measure; name a cell and a shape")

    def layers(self) -> list[LayerShape]:
        """What is measured."""
        sizes = [sizes_of(shape) for shape in self.shapes]
        if self.quick:
            sizes = sorted(sizes, key=lambda s: s[0] * s[1] * (s[2] + s[3]) * s[3])[:1]
        for cell, backend in product(self.cells, self.backends):
            require_backend(cell_named(cell), backend)
        return [
            LayerShape(cell, times, batch, input_size, hidden_size, backend)
            for (times, batch, input_size, hidden_size), cell, backend in product(
                sizes, self.cells, self.backends
            )
        ]


def sizes_of(shape: str) -> list[int]:
    """T, B, D and H; ValueError where the text is something else."""
    parts = shape.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"a shape is {shape!r}; expected four sizes T,B,D,H, such as {SHAPES[0]}")
    return list(map(int, parts))


def build(peer: Implementation, shape: LayerShape, dtype: DType) -> Built:
    """A layer of an implementation."""
    if shape.cell not in peer.cells:
        raise ValueError(f"it has no {shape.cell}")
    layer = peer.layer(shape, dtype, shape.work())
    return Built({"pass": layer.run}, layer.settings)


def work_of(shape: LayerShape, dtype: DType) -> Work:
    """What is timed of a layer, and how peers are checked."""
    same = partial(require_same_gradients, dtype=dtype)
    check = Check(gradients, (shape, dtype), same)
    tokens, products = shape.times * shape.batch, products_of_layer(shape)
    return Work("layer", "layer", shape, tokens, products, build, check)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench layer")
    return run(options, [work_of(shape, options.dtype) for shape in options.layers()])

"""A bare recurrent layer, forward and backward: ours and its peers.

One call computes the outputs, and from their gradient those of the inputs, the initial carry and
all weights. Shapes are T,B,D,H: time steps, batch, input size, hidden size. All start from the same
arrays; before timing, each one's gradients must agree with ours.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from bench.command import OptionsWithPeers
from bench.contest import Work, run
from bench.limits import products_of_layer
from bench.ours import require_layer
from bench.peers import Arrays, Implementation
from bench.shapes import DType, LayerShape
from bench.workers import Built, Disagreement
from lstm_jax.cells import CellName, cell_named
from lstm_jax.cli.allocator import keep_memory_of_steps
from lstm_jax.recurrence import Backend, require_backend

SHAPES = (
    "100,100,512,512",
    "35,32,256,256",
    "50,64,1024,1024",
    "80,128,100,64",
    "1000,1,128,128",
    "20,512,64,64",
)

_TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "float16": 3e-2, "bfloat16": 0.15}
"""Relative to an array's norm; some peers round the carry, too. Other work is about 1 off."""


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measure a layer's forward and backward pass, ours and its peers.

    With `quick`, only the shape with the least work is measured.
    """

    #: cells to measure; peers only have PyTorch's, lstm and gru.
    cells: tuple[CellName, ...] = ("lstm", "gru")
    #: implementations of ours; of several, each cell is measured with those it has.
    backends: tuple[Backend, ...] = ("auto",)
    shapes: tuple[str, ...] = SHAPES  # T,B,D,H of each.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers():
            raise ValueError("there is nothing to measure; name a cell and a shape")

    def layers(self) -> list[LayerShape]:
        sizes = [sizes_of(shape) for shape in self.shapes]
        if self.quick:
            sizes = sorted(sizes, key=lambda s: s[0] * s[1] * (s[2] + s[3]) * s[3])[:1]
        # Of several backends, those that a cell lacks are left out; one alone is refused.
        found, lacking = [], (ValueError,) if self.backends[1:] else ()
        for each, cell, backend in product(sizes, self.cells, self.backends):
            with suppress(*lacking):
                require_backend(cell_named(cell), backend)
                found.append(LayerShape(cell, *each, backend))
        for shape in found:
            require_layer(shape, self.dtype)
        return found


def sizes_of(shape: str) -> tuple[int, int, int, int]:
    """Parse T, B, D and H; raises ValueError for any other text."""
    parts = shape.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"a shape is {shape!r}; expected four sizes T,B,D,H, such as {SHAPES[0]}")
    times, batch, input_size, hidden_size = map(int, parts)
    return times, batch, input_size, hidden_size


def gradients(peer: Implementation, shape: LayerShape, dtype: DType) -> Arrays:
    return peer.layer(shape, dtype).gradients()


def require_same_gradients(
    found: Arrays, wanted: Arrays, dtype: str, whose: str = "ours"
) -> dict[str, float]:
    """Norm of each difference of a layer's outputs and gradients, relative to the wanted array's.

    Raises Disagreement at the first that is too large.
    """
    away = {}
    for name, array in found.items():
        what = name if name.startswith("ys") else f"gradient of {name}"
        if array.shape != wanted[name].shape:
            raise Disagreement(f"{what} is {array.shape}, {whose} {wanted[name].shape}")
        difference = np.linalg.norm(array - wanted[name])
        away[name] = float(difference / np.linalg.norm(wanted[name]))
        if not away[name] <= _TOLERANCE[dtype]:  # also true for NaN
            raise Disagreement(f"{what} is {away[name]:.2g} of its length away from {whose}")
    return away


def build(peer: Implementation, shape: LayerShape, dtype: DType) -> Built:
    keep_memory_of_steps(shape.batch, shape.hidden_size)  # as train.py does
    layer = peer.layer(shape, dtype)
    return Built({"pass": layer.run}, layer.settings)


def work_of(shape: LayerShape, dtype: DType) -> Work:
    given: Any = {"shape": shape, "dtype": dtype}
    return Work(
        *("layer", shape, shape.times * shape.batch, products_of_layer(shape)),
        build=partial(build, **given),
        evidence=partial(gradients, **given),
        require_same=partial(require_same_gradients, dtype=dtype),
    )


def main(options: Options) -> int:
    return run(options, [work_of(shape, options.dtype) for shape in options.layers()])

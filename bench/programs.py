"""Our layers and training steps, compiled for a device that is only described."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bench.layer import sizes_of
from bench.ours import step_shapes
from bench.report import writing
from bench.shapes import LayerShape, systems_named
from lstm_jax.cells import CELLS, CellName
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import run_stack

_LAYER = re.compile(rf'op_name="[^"]*?\b((?:{"|".join(cell.name for cell in CELLS)})_\d+)')

Row = dict[str, Any]


class Program(NamedTuple):
    """A jitted function's `lower` and the shapes of its arguments."""

    name: str
    dtype: ComputeDtype  # dtype of the products.
    times: int  # number of time steps of its layers.
    lower: Callable[..., Any]
    given: tuple[Any, ...]

    def compiled(self, device: Any, options: Mapping[str, Any]) -> Any:
        place = SingleDeviceSharding(device)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), self.given
        )
        return self.lower(*shapes).compile(compiler_options=dict(options))


@dataclass(frozen=True)
class Programs:
    """Layers and training steps to compile."""

    cells: tuple[CellName, ...] = ("lstm", "gru")  # cells of the layers.
    shapes: tuple[str, ...] = ("100,100,512,512",)  # shapes of the layers, T,B,D,H each.
    dtypes: tuple[ComputeDtype, ...] = ("float32", "tf32", "bfloat16")  # dtypes of the products.
    backend: Backend = "auto"  # backend of the layers.
    masked: bool = False  # give the layers a mask and resets.
    systems: tuple[str, ...] = ()  # systems whose training steps to compile; by default all.
    quick: bool = False  # no training steps.
    json: Path | None = None  # file for the rows, one per line.

    def all(self) -> Iterator[Program]:
        for sizes, cell, dtype in product(self.shapes, self.cells, self.dtypes):
            shape = LayerShape(cell, *sizes_of(sizes), self.backend, flags=self.masked)
            yield from programs_of_layer(shape, dtype)
        for system in [] if self.quick else systems_named(self.systems, quick=False):
            for dtype in self.dtypes:
                lower, *shapes = step_shapes(system, dtype)
                name, times = f"{system.name} step", system.sequence_length
                yield Program(name, dtype, times, lower, tuple(shapes))

    def write(self, bench: str, rows: Iterable[Row]) -> None:
        with writing(self.json) as write:
            for row in rows:
                told = (v if isinstance(v, str) else f"{k} {v:.4g}" for k, v in row.items())
                print(", ".join(told), flush=True)
                write({"bench": bench} | row)


def programs_of_layer(shape: LayerShape, dtype: ComputeDtype) -> Iterator[Program]:
    """Yield a layer's inference, and its training: forward and backward."""
    config, work = shape.config(dtype), jax.eval_shape(shape.work)

    def inference(given: Any, flags: Any) -> Any:
        return run_stack(config, *given, **flags)

    def training(given: Any, flags: Any, dys: Any) -> Any:
        ys, pull = jax.vjp(partial(inference, flags=flags), given)
        return ys, pull(dys)

    flags = {"mask": work.mask, "resets": work.resets}
    given = ((work.layers, work.carries, work.xs), flags)
    made = partial(Program, dtype=dtype, times=shape.times)
    yield made(f"{shape.name} inference", lower=jax.jit(inference).lower, given=given)
    dys = jax.eval_shape(inference, *given)
    yield made(f"{shape.name} training", lower=jax.jit(training).lower, given=(*given, dys))


def described(what: str, extra: str, name: str, platform: str, **options: Any) -> Any:
    """First device of a topology; raises ValueError if nothing here compiles for it."""
    # Otherwise JAX first looks for drivers of accelerators.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(name, platform, **options).devices[0]
    except (NotImplementedError, RuntimeError) as error:
        line = f"nothing here compiles for {what} ({error}); pip install '.[{extra}]'"
        raise ValueError(line) from None


def loops_in(program: Program, compiled: Any) -> Iterator[tuple[str, Row | None]]:
    """The outermost loops of a compiled program, with the beginning of a row if over time."""
    memory_mb = compiled.memory_analysis().temp_size_in_bytes / 1e6
    entry = compiled.as_text().partition("\nENTRY ")[2]
    for loop in re.findall(r"^.* while\(.*$", entry, re.MULTILINE):
        layer = _LAYER.search(loop)
        yield (
            loop,
            layer
            and {
                "program": program.name,
                "dtype": program.dtype,
                "layer": layer[1],
                "direction": "backward" if "transpose(" in loop else "forward",
                "temporary_mb": memory_mb,
            },
        )

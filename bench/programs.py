"""Our layers and training steps, compiled for a device that is only described."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bench.layer import sizes_of
from bench.ours import step_shapes
from bench.shapes import LayerShape, systems_named
from lstm_jax.cells import CELLS, CellName
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import StackConfig, init_stack, run_stack, stack_zero_carry

_LAYER = re.compile(rf'op_name="[^"]*?\b((?:{"|".join(cell.name for cell in CELLS)})_\d+)')


class Program(NamedTuple):
    """A jitted function's `lower` and the shapes of its arguments.

    Attributes:
        dtype: dtype of the products.
        times: number of time steps of its layers.
    """

    name: str
    dtype: ComputeDtype
    times: int
    lower: Callable[..., Any]
    given: tuple[Any, ...]

    def compiled(self, device: Any, options: Mapping[str, Any]) -> Any:
        """Compile for this device with these compiler options."""
        place = SingleDeviceSharding(device)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), self.given
        )
        return self.lower(*shapes).compile(compiler_options=dict(options))


@dataclass(frozen=True)
class Programs:
    """Layers and training steps to compile.

    Attributes:
        cells: cells of the layers.
        shapes: shapes of the layers, T,B,D,H each.
        dtypes: dtypes of the products.
        backend: backend of the layers.
        masked: give the layers a mask and resets.
        systems: systems whose training steps to compile; by default all.
        quick: no training steps.
        json: file for the rows, one per line.
    """

    cells: tuple[CellName, ...] = ("lstm", "gru")
    shapes: tuple[str, ...] = ("100,100,512,512",)
    dtypes: tuple[ComputeDtype, ...] = ("float32", "tf32", "bfloat16")
    backend: Backend = "auto"
    masked: bool = False
    systems: tuple[str, ...] = ()
    quick: bool = False
    json: Path | None = None

    def all(self) -> Iterator[Program]:
        """Yield the programs, layers first."""
        sizes = map(sizes_of, self.shapes)
        for (size, cell), dtype in product(product(sizes, self.cells), self.dtypes):
            shape = LayerShape(cell, *size, backend=self.backend)
            yield from programs_of_layer(shape, dtype, self.masked)
        for system in [] if self.quick else systems_named(self.systems, quick=False):
            for dtype in self.dtypes:
                lower, *shapes = step_shapes(system, dtype)
                name, times = f"{system.name} step", system.sequence_length
                yield Program(name, dtype, times, lower, tuple(shapes))


def programs_of_layer(shape: LayerShape, dtype: ComputeDtype, masked: bool) -> Iterator[Program]:
    """Yield a layer's inference, and its training: forward and backward."""
    stack = StackConfig(
        cell=shape.cell,
        hidden_size=shape.hidden_size,
        backend=shape.backend,
        compute_dtype=dtype,
    )
    key = jax.eval_shape(lambda: random.key(0))
    layers = jax.eval_shape(lambda key: init_stack(key, stack, shape.input_size), key)
    xs = jax.ShapeDtypeStruct((shape.times, shape.batch, shape.input_size), jnp.float32)
    carry = jax.eval_shape(lambda layers: stack_zero_carry(layers, shape.batch), layers)
    times_and_rows = jax.ShapeDtypeStruct(xs.shape[:2], jnp.bool_)
    flags = {name: times_and_rows for name in ("mask", "resets") if masked}

    def inference(given: Any, flags: Any) -> Any:
        return run_stack(stack, *given, **flags)

    def training(given: Any, flags: Any, dys: Any) -> Any:
        ys, pull = jax.vjp(partial(inference, flags=flags), given)
        return ys, pull(dys)

    given = ((layers, carry, xs), flags)
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


def loops_in(hlo: str) -> list[str]:
    """The outermost loops of a compiled program, one line each."""
    entry = hlo.partition("\nENTRY ")[2]
    return re.findall(r"^.* while\(.*$", entry, re.MULTILINE)


def layer_of(loop: str) -> tuple[str, str] | None:
    """Layer name and number, and direction of the pass, of a loop over time."""
    layer = _LAYER.search(loop)
    return layer and (layer[1], "backward" if "transpose(" in loop else "forward")

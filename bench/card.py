"""Rates of a device: copies, matrix products, and the steps of loops that compute little."""

import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench.launches import GRAPH
from bench.shapes import DType
from bench.timing import Visit, take_turns
from lstm_jax.precision import products

Record = Callable[..., None]  # Writes a row: name of what was measured, `Timing` if any, fields.
DTYPES: tuple[DType, ...] = ("bfloat16", "tf32", "float32")
_MODES: Mapping[str, Mapping[str, Any]] = {
    "no graph": {"xla_gpu_enable_command_buffer": ""},
    "graphs as by default": {},
    "one graph": {**GRAPH, "xla_gpu_graph_min_graph_size": 1},
}
_ASKED = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"


def state() -> str:
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def measure(record: Record, *, small: bool) -> None:
    numbers, size, steps = (2**18, 256, 100) if small else (2**29, 8192, 1000)

    def note(name: str, unit: str, amount: float, make: Callable[[], Any], dtype: str = "") -> None:
        try:
            call = make()
            visit = Visit(lambda times=1: jax.block_until_ready([call() for _ in range(times)][-1]))
            timing = take_turns({"": partial(visit, 0.2, 0.005)}, 3)[""]
        except Exception as error:  # of any compiler pass
            record(name, dtype=dtype, failed=f"{type(error).__name__}: {error}"[:300])
        else:
            seconds = timing.median_ms / 1e3
            rate = seconds / amount if unit == "us" else amount / seconds
            record(name, timing, dtype=dtype, rate=rate, unit=unit, card=state())

    def copy() -> Any:
        return partial(jax.jit(lambda a: a + 1), random.normal(random.key(0), (numbers,)))

    def product(dtype: DType) -> Any:
        policy = products(dtype, jnp.float32)
        keys = random.split(random.key(1))
        return partial(
            jax.jit(policy.dot), *(policy.cast(random.normal(key, (size, size))) for key in keys)
        )

    def loop(kernels: int, mode: str) -> Any:
        lowered = jax.jit(partial(_loop, steps, kernels)).lower(jnp.ones(1024))
        return partial(lowered.compile(compiler_options=dict(_MODES[mode])), jnp.ones(1024))

    note("copy, read and written", "GB/s", 8e-9 * numbers, copy, "float32")
    for dtype in DTYPES:
        note(f"product, {size} each", "TFLOP/s", 2e-12 * size**3, partial(product, dtype), dtype)
    for kernels in (1, 6):
        for mode in _MODES:
            name = f"empty step of {kernels} kernels, {mode}"
            note(name, "us", 1e-6 * steps, partial(loop, kernels, mode))


def _loop(steps: int, kernels: int, start: Array) -> Array:
    def step(_: int, x: Array) -> Array:
        for _ in range(kernels):
            x = lax.optimization_barrier(0.999 * x + 1e-3)
        return x

    return lax.fori_loop(0, steps, step, start)

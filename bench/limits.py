"""The memory limit of decoding: a step at batch 1 must read every weight once.

As weights may fit in a cache, the limit is not taken from a data sheet: it is the time that passes
over an array of exactly their size take here, in the fastest of a few ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench.shapes import StoredDType, System
from bench.workers import Built
from lstm_jax.models import LanguageModelParams
from lstm_jax.sampling import with_weights

_ROWS = 512


def bytes_a_step(params: LanguageModelParams) -> int:
    """Bytes that a step for one text must read: all weights, but only one row of look-up tables."""
    table = params.layers[0].w_x if params.embedding is None else params.embedding
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return int(total - table.nbytes + table.nbytes // len(table))


def build_reading(system: System, dtypes: Sequence[StoredDType], passes: int) -> Built:
    """Read as many bytes as a step must, with weights of each dtype, by the name of the way."""
    calls: dict[str, Callable[[], object]] = {}
    settings: dict[str, str] = {}
    for dtype in dtypes:
        _, params = with_weights(system.model(dtype), system.initial_params(), dtype)
        size = bytes_a_step(params)
        settings[dtype] = str(size)
        calls |= {f"{name}, {dtype}": run for name, run in readers(size, passes).items()}
    return Built(calls, settings)


def readers(size: int, passes: int) -> dict[str, Callable[[], Array]]:
    """Ways to read `size` bytes `passes` times, by name; each pass depends on the previous one.

    The bytes are float32 numbers in a matrix; `size` is matched up to part of one of its rows.
    """
    numbers = size // 4
    rows = min(_ROWS, numbers)
    weights = random.normal(random.key(0), (rows, max(1, round(numbers / rows))))
    return {
        "weights @ x": lambda: jax.block_until_ready(_by_rows(weights, passes)),
        "x @ weights": lambda: jax.block_until_ready(_by_columns(weights, passes)),
    }


@partial(jax.jit, static_argnums=1)
def _by_rows(weights_RC: Array, passes: int) -> Array:
    x_C = jnp.full(weights_RC.shape[1], 0.1)
    read: Array = lax.fori_loop(0, passes, lambda _, x: x_C * jnp.tanh((weights_RC @ x).max()), x_C)
    return read


@partial(jax.jit, static_argnums=1)
def _by_columns(weights_RC: Array, passes: int) -> Array:
    x_R = jnp.full(weights_RC.shape[0], 0.1)
    read: Array = lax.fori_loop(0, passes, lambda _, x: x_R * jnp.tanh((x @ weights_RC).max()), x_R)
    return read

"""Our training step compiled ahead of time: how long that takes, and what memory it will need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from bench.ours import epoch, first_state, make_program
from bench.shapes import AnySystem, DType
from lstm_jax.training.state import train_step


@dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
        seconds: of tracing, lowering and compiling it.
        temporary_mb: megabytes that it takes beside its arguments and results.
        run: (state, data) -> (state, metrics); the state is donated.
    """

    seconds: float
    temporary_mb: float
    run: Any


@contextmanager
def without_compilation_cache() -> Iterator[None]:
    """What the user's JAX_COMPILATION_CACHE_DIR holds is not taken from there."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once a process whether there is a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def lower(system: AnySystem, dtype: DType) -> Any:
    """The step before it is compiled, from shapes alone."""
    program = make_program(system, dtype)
    params = jax.eval_shape(system.initial_params)
    state = jax.eval_shape(partial(first_state, program, batch_size=system.batch_size), params)
    data = jax.eval_shape(lambda: epoch(system)[0])
    return train_step.lower(program, state, data)


def compile_ahead(system: AnySystem, dtype: DType) -> Compiled:
    """Compiles the step as if it were the first of the process, and never done before."""
    jax.clear_caches()
    with without_compilation_cache():
        began = time.perf_counter()
        compiled = lower(system, dtype).compile()
        took = time.perf_counter() - began
    analysis = compiled.memory_analysis()
    return Compiled(took, analysis.temp_size_in_bytes / 1e6, compiled)

"""Scans over chunks of time, with activations recomputed in the backward pass or saved."""

from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array, lax

Body = Callable[[Any, Any, Array], tuple[Any, Any]]


def is_shorter(chunk: int | None, times: Any) -> TypeGuard[int]:
    """Whether there is a chunk of fewer steps than T; a symbolic T (exported programs) has none."""
    return chunk is not None and isinstance(times, int) and chunk < times


def scan_rematerialised(
    body: Body, carry: Any, inputs: Any, chunk: int, *, reverse: bool = False
) -> tuple[Any, Any]:
    """Run `body` over chunks of time, saving only what enters each chunk.

    Memory is that of one chunk plus one carry per chunk, which is least with `chunk` near sqrt(T);
    the extra work is one more forward pass. If `chunk` does not divide T, the chunk processed last
    is shorter. `inputs` is a pytree of arrays `[T, ...]`, and

        body: (carry, inputs of K time steps, index of the chunk) -> (carry, outputs).

    Returns the final carry, and the outputs of all time steps.
    """
    in_loop = jax.checkpoint(body, prevent_cse=False)
    return scan_chunks(in_loop, carry, inputs, chunk, reverse=reverse, last=jax.checkpoint(body))


def scan_chunks(
    body: Body,
    carry: Any,
    inputs: Any,
    chunk: int,
    *,
    reverse: bool = False,
    last: Body | None = None,
) -> tuple[Any, Any]:
    """Like `scan_rematerialised`, but saving all; `last` runs a shorter last chunk, if given."""
    times = jax.tree.leaves(inputs)[0].shape[0]
    chunks, rest = divmod(times, chunk)
    whole = slice(rest, None) if reverse else slice(times - rest)
    stacked = jax.tree.map(lambda a: a[whole].reshape(chunks, chunk, *a.shape[1:]), inputs)

    def step(carry: Any, taken: tuple[Any, Array]) -> Any:
        return body(carry, *taken)

    carry, outputs = lax.scan(step, carry, (stacked, jnp.arange(chunks)), reverse=reverse)
    outputs = jax.tree.map(lambda a: a.reshape(chunks * chunk, *a.shape[2:]), outputs)
    if not rest:
        return carry, outputs
    left = slice(rest) if reverse else slice(times - rest, None)
    taken = jax.tree.map(lambda a: a[left], inputs)
    carry, found = (last or body)(carry, taken, jnp.array(chunks))
    parts = (found, outputs) if reverse else (outputs, found)
    return carry, jax.tree.map(lambda *each: jnp.concatenate(each), *parts)

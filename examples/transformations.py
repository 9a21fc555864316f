"""JAX's transformations apply to a layer, because it is a pure function.

Each part computes the same numbers in two ways, and `main` returns how much they differ.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import DTypeLike

from lstm_jax import LSTMCarry, LSTMParams, init_lstm, lstm, zero_carry
from lstm_jax.recurrence import Backend

TIMES, BATCH, SIZE = 24, 3, 8


def loss(params: LSTMParams, xs: Array, backend: Backend = "auto") -> Array:
    """Something to differentiate."""
    return jnp.mean(lstm(params, None, xs, backend=backend)[1] ** 2)


def grad_and_jvp(params: LSTMParams, xs: Array) -> tuple[Any, Any]:
    """A directional derivative: forward mode needs the reference, reverse mode any backend."""
    direction = jax.tree.map(jnp.ones_like, params)
    _, forward = jax.jvp(partial(loss, xs=xs, backend="reference"), (params,), (direction,))
    return forward, sum(leaf.sum() for leaf in jax.tree.leaves(jax.grad(loss)(params, xs)))


def checkpoint(params: LSTMParams, xs: Array) -> tuple[Any, Any]:
    """Less memory: the backward pass runs the layer again instead of keeping its activations."""
    return jax.grad(jax.checkpoint(loss))(params, xs), jax.grad(loss)(params, xs)


def scan_over_layers(params: LSTMParams, xs: Array) -> tuple[Any, Any]:
    """A deep stack that compiles one layer: a scan over the stacked weights of all layers."""
    layers = [params, jax.tree.map(jnp.negative, params), params]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    found, _ = lax.scan(lambda ys, layer: (lstm(layer, None, ys)[1], None), xs, stacked)
    expected = xs
    for layer in layers:
        _, expected = lstm(layer, None, expected)
    return found, expected


def scan_over_chunks(params: LSTMParams, xs: Array) -> tuple[Any, Any]:
    """A long sequence in chunks that pass on the carry, as in truncated backpropagation."""
    chunks = xs.reshape(4, TIMES // 4, BATCH, SIZE)
    _, found = lax.scan(partial(lstm, params), zero_carry(params, BATCH), chunks)
    return found.reshape(xs.shape), lstm(params, None, xs)[1]


def donated_carry(params: LSTMParams, xs: Array) -> tuple[Any, Any]:
    """The carry's buffers are donated, and overwritten by the next carry."""

    @partial(jax.jit, donate_argnums=0)
    def run(carry: LSTMCarry, xs: Array) -> LSTMCarry:
        return lstm(params, carry, xs)[0]

    given = zero_carry(params, BATCH)
    found = run(given, xs)
    assert given.h.is_deleted() and given.c.is_deleted()
    return found, run(zero_carry(params, BATCH), xs)


def draw(dtype: DTypeLike) -> tuple[LSTMParams, Array]:
    """Random weights, and inputs `[T, B, D]`."""
    params = init_lstm(random.key(0), SIZE, SIZE, dtype=dtype)
    return params, random.normal(random.key(1), (TIMES, BATCH, SIZE), dtype)


def difference(one: Any, other: Any) -> float:
    """The largest difference between two trees of arrays."""
    return max(map(float, jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), one, other))))


def main() -> dict[str, float]:
    """Runs all parts; returns the difference of each."""
    params, xs = draw(jnp.float32)
    parts = (grad_and_jvp, checkpoint, scan_over_layers, scan_over_chunks)
    found = {part.__name__: difference(*jax.jit(part)(params, xs)) for part in parts}
    found["donated_carry"] = difference(*donated_carry(params, xs))
    with jax.enable_x64(True):
        found["float64"] = difference(*jax.jit(grad_and_jvp)(*draw(jnp.float64)))
    print("differences:", ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()

"""Exports a layer with `jax.export`, for processes that have JAX but not this library.

Time and batch are symbolic, so one artefact takes sequences of any length. To export whole trained
models see `lstm_jax.interop.export_step`.
"""

import jax
import jax.export
import jax.numpy as jnp
from jax import Array, random

from lstm_jax import init_lstm, lstm

SIZE, HIDDEN = 3, 16


def main() -> tuple[int, float]:
    """Exports a layer, reads it back, runs it; returns its size in bytes and the largest error."""
    params = init_lstm(random.key(0), SIZE, HIDDEN)

    def outputs(xs: Array) -> Array:
        return lstm(params, None, xs)[1]

    any_sequences = jax.ShapeDtypeStruct(
        jax.export.symbolic_shape(f"time, batch, {SIZE}"), jnp.float32
    )
    data = jax.export.export(jax.jit(outputs), platforms=["cpu", "cuda", "tpu"])(
        any_sequences
    ).serialize()

    # From here on, this library is no longer needed.
    layer = jax.export.deserialize(data)
    difference = 0.0
    for time, batch in ((10, 4), (25, 1)):
        xs = random.normal(random.key(time), (time, batch, SIZE))
        difference = max(difference, float(jnp.abs(layer.call(xs) - outputs(xs)).max()))
    print(f"{len(data):,} bytes for {', '.join(layer.platforms)}; differs by {difference:g}")
    return len(data), difference


if __name__ == "__main__":
    main()

"""`jax.experimental.rnn`: cuDNN's LSTM on a GPU; elsewhere its own reference."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import rnn

from bench.peers import Implementation, LayerPass
from bench.peers.on_jax import layer_pass
from bench.shapes import DType, LayerShape


class Peer(Implementation):
    """All layers in one call, with batch-major inputs and all weights in one array."""

    def layer(self, shape: LayerShape, dtype: DType) -> LayerPass:
        if shape.cell != "lstm":
            raise ValueError(f"it has no {shape.cell}")
        if dtype == "bfloat16":
            raise ValueError("no bfloat16 is built for it")
        work = shape.work()
        sizes = (shape.input_size, shape.hidden_size, shape.layers)
        lengths = jnp.full(shape.batch, shape.times, jnp.int32)

        def forward(weights: Array, carry: Any, xs: Array) -> Array:
            if jax.default_backend() == "gpu":
                return rnn.lstm(xs, *carry, weights, lengths, *sizes, 0.0, False)[0]
            parts = rnn.unpack_lstm_weights(weights, *sizes, False)
            return rnn.lstm_ref(xs, *carry, *parts, lengths, *sizes, 0.0, False)[0]

        def named(weights: Array, carry: Any, xs: Array) -> dict[str, Any]:
            found: dict[str, Any] = {"xs": xs}
            w_x, w_h, b, _ = rnn.unpack_lstm_weights(weights, *sizes, False)
            for n in range(shape.layers):
                each = {"w_x": w_x[n].T, "w_h": w_h[n].T, "b": b[n]}
                each |= {name: part[n] for name, part in zip("hc", carry, strict=True)}
                found |= {f"[{n}].{k}" if n else k: array for k, array in each.items()}
            return found

        matrices = [array.T for layer in work.layers for array in (layer.w_x, layer.w_h)]
        biases = [array for layer in work.layers for array in (layer.b, jnp.zeros_like(layer.b))]
        weights = jnp.concatenate([array.ravel() for array in (*matrices, *biases)])
        carry = tuple(map(jnp.stack, zip(*work.carries, strict=True)))
        settings = {"call": "rnn.lstm", "inputs": "batch-major"}
        inputs = (weights, carry, work.xs)
        return layer_pass(forward, inputs, work.dys, named, settings, dtype, batch_major=True)

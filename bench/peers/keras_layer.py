"""Keras's bare `layers.LSTM` or `layers.GRU`, on JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array

from bench.jax_layer import JaxLayerPass
from bench.peers.keras_parts import (
    cast,
    in_our_order,
    make_recurrent,
    recurrent_weights,
    require_jax,
)
from bench.shapes import DType, LayerShape, LayerWork


class KerasLayer:
    """Keras through `stateless_call`, on batch-major inputs, which are its own."""

    name = "keras"

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        """See `LayerImplementation`."""
        require_jax()
        sizes = (shape.input_size, shape.hidden_size)
        layer = make_recurrent(shape.cell, dtype, *sizes, return_state=False)
        fixed = [variable.value for variable in layer.non_trainable_variables]

        def forward(weights: Any, carry: Any, xs: Array) -> Array:
            weights, carry, xs = cast((weights, carry, xs), dtype)
            ys: Array = layer.stateless_call(weights, fixed, xs, initial_state=carry)[0]
            return ys

        def named(weights: Any, carry: Any, xs: Any) -> dict[str, Any]:
            w_x, w_h, b = map(np.asarray, weights)
            found = {"xs": np.asarray(xs).swapaxes(0, 1)}
            found |= {name: np.asarray(part) for name, part in zip("hc", carry, strict=False)}
            if shape.cell == "gru":
                w_x, w_h, b = map(in_our_order, (w_x, w_h, b))
                found["b_hn"] = b[1, -shape.hidden_size :]
                b = b[0]
            return found | {"w_x": w_x, "w_h": w_h, "b": b}

        xs, dys = (np.ascontiguousarray(each.swapaxes(0, 1)) for each in (work.xs, work.dys))
        settings = {"call": "stateless_call", "inputs": "batch-major"}
        inputs = (recurrent_weights(work.params), list(work.carry), xs)
        return JaxLayerPass(forward, inputs, dys, named, settings)


PEER = KerasLayer()

"""Flax's bare `nnx.RNN`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from bench.jax_layer import JaxLayerPass
from bench.peers import flax_nnx_parts as parts
from bench.shapes import DType, LayerShape, LayerWork


class FlaxNnxLayer:
    """`nnx.RNN` around `OptimizedLSTMCell` or `GRUCell`."""

    name = "flax-nnx"

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        """See `LayerImplementation`."""
        sizes = (shape.input_size, shape.hidden_size)
        module: nnx.RNN = nnx.eval_shape(
            lambda: parts.make_rnn(shape.cell, *sizes, jnp.dtype(dtype), nnx.Rngs(0))
        )
        graph = nnx.graphdef(module)

        def forward(weights: Any, carry: Any, xs: Array) -> Array:
            ys: Array = nnx.merge(graph, weights)(xs, initial_carry=carry)[1]
            return ys

        def named(weights: Any, carry: Any, xs: Any) -> dict[str, Any]:
            dense_i, dense_h = (weights["cell"][name] for name in ("dense_i", "dense_h"))
            bias = (dense_h if shape.cell == "lstm" else dense_i)["bias"]
            parts_of = dict(zip("ch", carry, strict=True)) if shape.cell == "lstm" else {"h": carry}
            found = {"xs": xs, "w_x": dense_i["kernel"], "w_h": dense_h["kernel"], "b": bias}
            return {name: _array(each) for name, each in (found | parts_of).items()}

        weights = parts.with_weights(module, {"cell": parts.cell_weights(work.params)})
        carry = (work.carry.c, work.carry.h) if shape.cell == "lstm" else work.carry.h
        settings = {"cell": type(module.cell).__name__}
        return JaxLayerPass(forward, (weights, carry, work.xs), work.dys, named, settings)


PEER = FlaxNnxLayer()


def _array(value: Any) -> Any:
    return value[...] if isinstance(value, nnx.Variable) else value

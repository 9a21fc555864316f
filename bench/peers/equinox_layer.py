"""Equinox's bare cells under `lax.scan`."""

from __future__ import annotations

from typing import Any

from jax import Array

from bench.jax_layer import JaxLayerPass
from bench.peers.equinox_parts import cast, make_cell, run_cell
from bench.shapes import DType, LayerShape, LayerWork


class EquinoxLayer:
    """`eqx.nn.LSTMCell` or `GRUCell`."""

    name = "equinox"

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        """See `LayerImplementation`."""

        def forward(cell: Any, carry: Any, xs: Array) -> Array:
            return run_cell(*cast((cell, carry, xs), dtype))[1]

        def named(cell: Any, carry: Any, xs: Any) -> dict[str, Any]:
            found = {"xs": xs, "w_x": cell.weight_ih.T, "w_h": cell.weight_hh.T, "b": cell.bias}
            if shape.cell == "gru":
                return found | {"h": carry, "b_hn": cell.bias_n}
            return found | dict(zip("hc", carry, strict=True))

        carry = tuple(work.carry) if shape.cell == "lstm" else work.carry.h
        inputs = (make_cell(shape.cell, work.params), carry, work.xs)
        settings = {"loop": "lax.scan", "batch": "vmap"}
        return JaxLayerPass(forward, inputs, work.dys, named, settings)


PEER = EquinoxLayer()

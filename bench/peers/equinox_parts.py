"""Equinox's cells over time: `lax.scan` around the cell, `vmap` over the batch."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax, random

from lstm_jax.cells import CellName


def make_cell(cell: CellName, params: Any) -> Any:
    """The cell with our weights; the order of the gates is the same."""
    kind = eqx.nn.LSTMCell if cell == "lstm" else eqx.nn.GRUCell
    empty = kind(params.w_x.shape[0], params.w_h.shape[0], key=random.key(0))
    arrays = [params.w_x.T, params.w_h.T, params.b]
    if cell == "gru":
        arrays.append(params.b_hn)
    return eqx.tree_at(_weights_of, empty, tuple(map(jnp.copy, arrays)))


def _weights_of(cell: Any) -> tuple[Any, ...]:
    weights = (cell.weight_ih, cell.weight_hh, cell.bias)
    return (*weights, cell.bias_n) if isinstance(cell, eqx.nn.GRUCell) else weights


def run_cell(cell: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
    """Over time: `[T, B, D] -> [T, B, H]`; the carry is (h, c), or h."""

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        carry = jax.vmap(cell)(x, carry)
        return carry, carry[0] if isinstance(carry, tuple) else carry

    return lax.scan(step, carry, xs)


def cast(tree: Any, dtype: str) -> Any:
    """All of it in the dtype of the products: what a cell holds is what it multiplies in."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

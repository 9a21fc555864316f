"""What every use of Flax here shares: its recurrent layer, and its form of weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lstm_jax.cells import CellName, LSTMParams


def make_rnn(cell: CellName, inputs: int, size: int, compute: Any, rngs: nnx.Rngs) -> nnx.RNN:
    """`nnx.RNN` around the cell that is fastest of its kind."""
    kind: Any = nnx.OptimizedLSTMCell if cell == "lstm" else nnx.GRUCell
    return nnx.RNN(
        kind(inputs, size, dtype=compute, rngs=rngs),
        time_major=True,
        return_carry=True,
        rngs=False,
    )


def cell_weights(layer: Any) -> dict[str, Any]:
    """Our layer's weights by the cell's names."""
    kernels = {"dense_i": {"kernel": layer.w_x}, "dense_h": {"kernel": layer.w_h}}
    kernels["dense_h" if isinstance(layer, LSTMParams) else "dense_i"]["bias"] = layer.b
    return kernels


def zero_carry(cell: CellName, batch_size: int, hidden_size: int) -> Any:
    """What a layer starts from."""

    def zeros() -> Array:
        return jnp.zeros((batch_size, hidden_size))

    return (zeros(), zeros()) if cell == "lstm" else zeros()


def with_weights(module: Any, weights: dict[str, Any]) -> Any:
    """The parameters of a module without numbers, with copies of these."""
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.copy, weights))
    return state

"""The minGRU of Feng et al. (2024): a GRU without what the gates take from the state.

Shapes: B batch, D input size, H hidden size, G = 2H gates z, n side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, step_units
from lstm_jax.initialisation import Initialisation, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree


class MinGRUParams(NamedTuple):
    """Weights of a minGRU: `w_x [D, 2H]`, `b [2H]`; order z, n.

    Examples:
        >>> lstm_jax.init_mingru(jax.random.key(0), 3, 4).w_x.shape
        (3, 8)
    """

    w_x: Array
    b: Array

    @property
    def cell(self) -> Cell:
        """What it declares."""
        return MINGRU


class MinGRUCarry(NamedTuple):
    """State of a minGRU: `h [B, H]`.

    Examples:
        >>> lstm_jax.MinGRUCarry(h=jnp.zeros((2, 4))).h.shape
        (2, 4)
    """

    h: Array


def mingru_step(
    params: MinGRUParams,
    carry: MinGRUCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[MinGRUCarry, Array]:
    """One step of a minGRU.

        z = sigmoid(x w_z + b_z)
        n = x w_n + b_n
        h' = (1 - z) h + z n

    Arguments, results and errors are those of `lstm_step`, with a carry `h [B, H]`
    and inputs `[B, D]`, or integers `[B]`.

    References:
        Feng et al., arXiv:2410.01201.

    Examples:
        >>> params = lstm_jax.init_mingru(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.mingru_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return step_units(MINGRU, params, carry, x, compute_dtype)


def _unit_step(params: MinGRUParams, carry: MinGRUCarry, gates_BG: Array) -> MinGRUCarry:
    z_BH, n_BH = jnp.split(gates_BG, 2, axis=-1)
    z_BH = jax.nn.sigmoid(z_BH)
    return MinGRUCarry((1 - z_BH) * carry.h + z_BH * n_BH)


def init_mingru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> MinGRUParams:
    """Draws the weights of a minGRU.

    Args:
        key: a typed PRNG key.
        input_size: D.
        hidden_size: H.
        initialisation: `"pytorch"`: all uniform in +-1/sqrt(H); `"keras"` and `"tf1"`: Glorot
            uniform weights, zero biases.
        dtype: of the parameters; those narrower than float32 are drawn in float32 and cast.

    Raises:
        ValueError: a size that is no integer or below 1, or an unknown name.

    Examples:
        >>> lstm_jax.init_mingru(jax.random.key(0), input_size=3, hidden_size=4).b.shape
        (8,)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 2, initialisation, dtype)
    return cast_tree(MinGRUParams(w_x, b), dtype)


MINGRU = Cell(
    "mingru", 2, mingru_step, init_mingru, MinGRUParams, MinGRUCarry, _unit_step, linear=True
)

"""The diagonal GRU of Danieli et al. (2025): a GRU whose recurrent matrices are diagonal.

Shapes: B batch, D input size, H hidden size, G = 3H gates r, z, n side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, step_units
from lstm_jax.initialisation import Initialisation, init_diagonal, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree


class DiagGRUParams(NamedTuple):
    """Weights of a diagonal GRU: `w_x [D, 3H]`, `a [3H]`, `b [3H]`; order r, z, n.

    `a` holds the diagonals of the recurrent matrices.

    Examples:
        >>> lstm_jax.init_diag_gru(jax.random.key(0), 3, 4).a.shape
        (12,)
    """

    w_x: Array
    a: Array
    b: Array

    @property
    def cell(self) -> Cell:
        """What it declares."""
        return DIAG_GRU


class DiagGRUCarry(NamedTuple):
    """State of a diagonal GRU: `h [B, H]`.

    Examples:
        >>> lstm_jax.DiagGRUCarry(h=jnp.zeros((2, 4))).h.shape
        (2, 4)
    """

    h: Array


def diag_gru_step(
    params: DiagGRUParams,
    carry: DiagGRUCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[DiagGRUCarry, Array]:
    """One step of a diagonal GRU; products with `a` are unit by unit.

        r, z = sigmoid(a_r h + x w_r + b_r), sigmoid(a_z h + x w_z + b_z)
        n = tanh(a_n (r h) + x w_n + b_n)
        h' = (1 - z) h + z n

    Arguments, results and errors are those of `lstm_step`, with a carry `h [B, H]`
    and inputs `[B, D]`, or integers `[B]`.

    References:
        Danieli et al., arXiv:2510.21450. Mind that z and 1 - z are the other way round in `gru`.

    Examples:
        >>> params = lstm_jax.init_diag_gru(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.diag_gru_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return step_units(DIAG_GRU, params, carry, x, compute_dtype)


def _unit_step(params: DiagGRUParams, carry: DiagGRUCarry, gates_BG: Array) -> DiagGRUCarry:
    h_BH = carry.h
    a_r, a_z, a_n = (a[None] for a in jnp.split(params.a, 3))
    r_BH, z_BH, n_BH = jnp.split(gates_BG, 3, axis=-1)
    r_BH, z_BH = jax.nn.sigmoid(a_r * h_BH + r_BH), jax.nn.sigmoid(a_z * h_BH + z_BH)
    n_BH = jnp.tanh(a_n * (r_BH * h_BH) + n_BH)
    return DiagGRUCarry((1 - z_BH) * h_BH + z_BH * n_BH)


def init_diag_gru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> DiagGRUParams:
    """Draws the weights of a diagonal GRU; see `init_mingru` for the arguments.

    `a` is uniform in +-1/sqrt(H) whatever the initialisation.

    Examples:
        >>> lstm_jax.init_diag_gru(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 12)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 3, initialisation, dtype)
    a = init_diagonal(key, hidden_size, 3, dtype)
    return cast_tree(DiagGRUParams(w_x, a, b), dtype)


DIAG_GRU = Cell(
    "diag-gru", 3, diag_gru_step, init_diag_gru, DiagGRUParams, DiagGRUCarry, _unit_step
)

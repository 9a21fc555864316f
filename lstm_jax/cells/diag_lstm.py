"""The diagonal LSTM of Danieli et al. (2025): coupled gates, peepholes, diagonal matrices.

Shapes: B batch, D input size, H hidden size, G = 3H gates f, g, o side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, step_units
from lstm_jax.initialisation import Initialisation, init_diagonal, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree


class DiagLSTMParams(NamedTuple):
    """Weights of a diagonal LSTM: `w_x [D, 3H]`, `a [3H]`, `p [2H]`, `b [3H]`; order f, g, o.

    `a` holds the diagonals of the recurrent matrices, `p` the peepholes of the gates f and o.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), 3, 4)
        >>> params.a.shape, params.p.shape
        ((12,), (8,))
    """

    w_x: Array
    a: Array
    p: Array
    b: Array

    @property
    def cell(self) -> Cell:
        """What it declares."""
        return DIAG_LSTM


class DiagLSTMCarry(NamedTuple):
    """State of a diagonal LSTM: `h [B, H]` and the cell `c [B, H]`.

    Examples:
        >>> lstm_jax.DiagLSTMCarry(h=jnp.zeros((2, 4)), c=jnp.ones((2, 4))).c.shape
        (2, 4)
    """

    h: Array
    c: Array


def diag_lstm_step(
    params: DiagLSTMParams,
    carry: DiagLSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[DiagLSTMCarry, Array]:
    """One step of a diagonal LSTM; products with `a` and `p` are unit by unit.

        f = sigmoid(a_f h + x w_f + p_f c + b_f)
        g = tanh(a_g h + x w_g + b_g)
        c' = f c + (1 - f) g
        o = sigmoid(a_o h + x w_o + p_o c' + b_o)
        h' = o tanh(c')

    Arguments, results and errors are those of `lstm_step`, with a carry `h [B, H]`, `c [B, H]`
    and inputs `[B, D]`, or integers `[B]`.

    References:
        Danieli et al., arXiv:2510.21450.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.diag_lstm_step(params, carry, jnp.ones((2, 3)))
        >>> carry.c.shape, h.shape
        ((2, 4), (2, 4))
    """
    return step_units(DIAG_LSTM, params, carry, x, compute_dtype)


def _unit_step(params: DiagLSTMParams, carry: DiagLSTMCarry, gates_BG: Array) -> DiagLSTMCarry:
    h_BH, c_BH = carry
    a_f, a_g, a_o = (a[None] for a in jnp.split(params.a, 3))
    p_f, p_o = (p[None] for p in jnp.split(params.p, 2))
    f_BH, g_BH, o_BH = jnp.split(gates_BG, 3, axis=-1)
    f_BH = jax.nn.sigmoid(a_f * h_BH + p_f * c_BH + f_BH)
    c_BH = f_BH * c_BH + (1 - f_BH) * jnp.tanh(a_g * h_BH + g_BH)
    o_BH = jax.nn.sigmoid(a_o * h_BH + p_o * c_BH + o_BH)
    return DiagLSTMCarry(o_BH * jnp.tanh(c_BH), c_BH)


def init_diag_lstm(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> DiagLSTMParams:
    """Draws the weights of a diagonal LSTM; see `init_mingru` for the arguments.

    `a` and `p` are uniform in +-1/sqrt(H) whatever the initialisation; `"keras"` and `"tf1"` start
    the forget gate's bias at 1.

    Examples:
        >>> lstm_jax.init_diag_lstm(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 12)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 3, initialisation, dtype)
    if initialisation != "pytorch":
        b = b.at[:hidden_size].set(1)
    a = init_diagonal(key, hidden_size, 3, dtype)
    p = init_diagonal(random.fold_in(key, 4), hidden_size, 2, dtype)
    return cast_tree(DiagLSTMParams(w_x, a, p, b), dtype)


DIAG_LSTM = Cell(
    "diag-lstm", 3, diag_lstm_step, init_diag_lstm, DiagLSTMParams, DiagLSTMCarry, _unit_step
)

"""The diagonal GRU and LSTM of Danieli et al. (2025), whose recurrent matrices are diagonal.

Shapes: B batch, D input size, H hidden size, G size of all gates together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, declared
from lstm_jax.cells.gru import GRUCarry
from lstm_jax.cells.lstm import LSTMCarry
from lstm_jax.cells.options import take_step
from lstm_jax.initialisation import Initialisation, init_diagonal, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree

DiagGRUCarry = GRUCarry
"""State of a diagonal GRU: `h [B, H]`."""
DiagLSTMCarry = LSTMCarry
"""State of a diagonal LSTM: hidden state `h [B, H]` and cell state `c [B, H]`."""


class DiagGRUParams(NamedTuple):
    """Weights of a diagonal GRU: `w_x [D, 3H]`, `a [3H]`, `b [3H]`; gate order r, z, n.

    `a` holds the diagonals of the recurrent matrices.

    Examples:
        >>> lstm_jax.init_diag_gru(jax.random.key(0), 3, 4).a.shape
        (12,)
    """

    w_x: Array
    a: Array
    b: Array


def diag_gru_step(
    params: DiagGRUParams,
    carry: DiagGRUCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[DiagGRUCarry, Array]:
    """One step of a diagonal GRU; products with `a` are elementwise.

        r, z = sigmoid(a_r h + x w_r + b_r), sigmoid(a_z h + x w_z + b_z)
        n = tanh(a_n (r h) + x w_n + b_n)
        h' = (1 - z) h + z n

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Danieli et al., arXiv:2510.21450. Note that `gru` swaps the roles of z and 1 - z.

    Examples:
        >>> params = lstm_jax.init_diag_gru(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.diag_gru_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(DIAG_GRU, params, carry, x, compute_dtype)


def _gru(params: DiagGRUParams, carry: DiagGRUCarry, gates_BG: Array) -> DiagGRUCarry:
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
    """Draw the weights of a diagonal GRU: `a` uniform in +-1/sqrt(H), the rest as `init_mingru`.

    Examples:
        >>> lstm_jax.init_diag_gru(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 12)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 3, initialisation, dtype)
    a = init_diagonal(key, hidden_size, 3, dtype)
    return cast_tree(DiagGRUParams(w_x, a, b), dtype)


DIAG_GRU = declared(
    Cell("diag-gru", 3, diag_gru_step, init_diag_gru, DiagGRUParams, DiagGRUCarry, _gru)
)


class DiagLSTMParams(NamedTuple):
    """Weights of a diagonal LSTM: `w_x [D, 3H]`, `a [3H]`, `p [2H]`, `b [3H]`; order f, g, o.

    `a` holds the diagonals of the recurrent matrices, `p` the peepholes of gates f and o.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), 3, 4)
        >>> params.a.shape, params.p.shape
        ((12,), (8,))
    """

    w_x: Array
    a: Array
    p: Array
    b: Array


def diag_lstm_step(
    params: DiagLSTMParams,
    carry: DiagLSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[DiagLSTMCarry, Array]:
    """One step of a diagonal LSTM; products with `a` and `p` are elementwise.

        f = sigmoid(a_f h + x w_f + p_f c + b_f)
        g = tanh(a_g h + x w_g + b_g)
        c' = f c + (1 - f) g
        o = sigmoid(a_o h + x w_o + p_o c' + b_o)
        h' = o tanh(c')

    See `lstm_step` for arguments, results and errors.

    References:
        Danieli et al., arXiv:2510.21450.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.diag_lstm_step(params, carry, jnp.ones((2, 3)))
        >>> carry.c.shape, h.shape
        ((2, 4), (2, 4))
    """
    return take_step(DIAG_LSTM, params, carry, x, compute_dtype)


def _lstm(params: DiagLSTMParams, carry: DiagLSTMCarry, gates_BG: Array) -> DiagLSTMCarry:
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
    """Draw the weights of a diagonal LSTM: `a`, `p` as `init_diag_gru`, the rest as `init_minlstm`.

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


DIAG_LSTM = declared(
    Cell("diag-lstm", 3, diag_lstm_step, init_diag_lstm, DiagLSTMParams, DiagLSTMCarry, _lstm)
)

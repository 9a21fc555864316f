"""The layer-normalised LSTM and GRU of Ba et al. (2016).

Shapes: B batch, D input size, H hidden size, G gates side by side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, Dot, declared
from lstm_jax.cells.gru import GRUCarry, init_gru
from lstm_jax.cells.lstm import LSTMCarry, init_lstm
from lstm_jax.cells.options import take_step
from lstm_jax.initialisation import Initialisation
from lstm_jax.precision import ComputeDtype

_EPSILON = 1e-5
"""Of the variance, as in PyTorch's LayerNorm. What is constant is normalised to zeros."""


def _normalised(x: Array, gain: Array) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + _EPSILON) * gain[None]


class LNLSTMParams(NamedTuple):
    """Weights of a layer-normalised LSTM: those of `LSTMParams`, gains and a bias of the cell.

    `w_x [D, 4H]`, `w_h [H, 4H]`, `b [4H]`; gains `g_x [4H]`, `g_h [4H]`, `g_c [H]`; `b_c [H]`.

    Examples:
        >>> lstm_jax.init_ln_lstm(jax.random.key(0), 3, 4).g_x.shape
        (16,)
    """

    w_x: Array
    w_h: Array
    b: Array
    g_x: Array
    g_h: Array
    g_c: Array
    b_c: Array


def ln_lstm_step(
    params: LNLSTMParams, carry: LSTMCarry, x: Array, *, compute_dtype: ComputeDtype | None = None
) -> tuple[LSTMCarry, Array]:
    """Run one step of a layer-normalised LSTM.

        i, f, g, o = g_x LN(x w_x) + g_h LN(h w_h) + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(g_c LN(c') + b_c)

    LN(a) = (a - mean) / sqrt(variance + 1e-5), over all gates of a step, or all units of c'.

    See `lstm_step` for arguments, results and errors.

    References:
        Ba et al., arXiv:1607.06450, whose normalisations each have a bias; those of the gates add
        up to `b` here. TensorFlow Addons carries LN(c') on, where the paper carries c'.

    Examples:
        >>> params = lstm_jax.init_ln_lstm(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.ln_lstm_step(params, carry, jnp.ones((2, 3)))
        >>> carry.c.shape, h.shape
        ((2, 4), (2, 4))
    """
    return take_step(LN_LSTM, params, carry, x, compute_dtype)


def _lstm(params: LNLSTMParams, carry: LSTMCarry, gates_BG: Array, dot: Dot) -> LSTMCarry:
    gates_BG = gates_BG + _normalised(dot(carry.h, params.w_h), params.g_h)
    i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
    c_BH = jax.nn.sigmoid(f_BH) * carry.c + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
    h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(_normalised(c_BH, params.g_c) + params.b_c[None])
    return LSTMCarry(h_BH, c_BH)


def init_ln_lstm(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> LNLSTMParams:
    """Draw the weights of a layer-normalised LSTM as `init_lstm` does; gains are 1, `b_c` is 0.

    Examples:
        >>> lstm_jax.init_ln_lstm(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 16)
    """
    drawn = init_lstm(key, input_size, hidden_size, initialisation=initialisation, dtype=dtype)
    assert drawn.b is not None
    # A buffer each: one shared by two could not be donated.
    g_x, g_h, g_c = (jnp.ones(size * hidden_size, dtype) for size in (4, 4, 1))
    b_c = jnp.zeros(hidden_size, dtype)
    return LNLSTMParams(drawn.w_x, drawn.w_h, drawn.b, g_x, g_h, g_c, b_c)


LN_LSTM = declared(
    Cell(
        "ln-lstm", 4, ln_lstm_step, init_ln_lstm, LNLSTMParams, LSTMCarry,
        gates_step=_lstm, inputs=lambda params, from_x_BG: _normalised(from_x_BG, params.g_x),
    )
)  # fmt: skip


class LNGRUParams(NamedTuple):
    """Weights of a layer-normalised GRU: those of `GRUParams`, and gains.

    `w_x [D, 3H]`, `w_h [H, 3H]`, `b [3H]`, `b_hn [H]`; gains `g_x [3H]`, `g_h [3H]`.

    Examples:
        >>> lstm_jax.init_ln_gru(jax.random.key(0), 3, 4).g_h.shape
        (12,)
    """

    w_x: Array
    w_h: Array
    b: Array
    b_hn: Array
    g_x: Array
    g_h: Array


def ln_gru_step(
    params: LNGRUParams, carry: GRUCarry, x: Array, *, compute_dtype: ComputeDtype | None = None
) -> tuple[GRUCarry, Array]:
    """Run one step of a layer-normalised GRU, whose reset gate works after the product.

        r, z = sigmoid(g_x LN(x w_x) + g_h LN(h w_h) + b)       of both gates together
        n = tanh(g_xn LN(x w_xn) + b_n + r (g_hn LN(h w_hn) + b_hn))
        h' = (1 - z) n + z h

    LN is that of `ln_lstm_step`, over both gates of a step, or over its candidate.

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Ba et al., arXiv:1607.06450, with z and 1 - z the other way round; z is `gru_step`'s here.

    Examples:
        >>> params = lstm_jax.init_ln_gru(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.ln_gru_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(LN_GRU, params, carry, x, compute_dtype)


def _gates_and_candidate(x_BG: Array, gain: Array) -> Array:
    """`[B, 3H]`, normalised over the gates r and z together, and over the candidate."""
    cut = [2 * (x_BG.shape[-1] // 3)]
    parts = zip(jnp.split(x_BG, cut, axis=-1), jnp.split(gain, cut), strict=True)
    return jnp.concatenate([_normalised(*part) for part in parts], axis=-1)


def _gru(params: LNGRUParams, carry: GRUCarry, gates_BG: Array, dot: Dot) -> GRUCarry:
    from_h_BG = _gates_and_candidate(dot(carry.h, params.w_h), params.g_h)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (jnp.split(a, 3, axis=-1) for a in (gates_BG, from_h_BG))
    r_BH, z_BH = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
    n_BH = jnp.tanh(n_x + r_BH * (n_h + params.b_hn[None]))
    return GRUCarry((1 - z_BH) * n_BH + z_BH * carry.h)


def init_ln_gru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> LNGRUParams:
    """Draw the weights of a layer-normalised GRU as `init_gru` does; gains are 1.

    Examples:
        >>> lstm_jax.init_ln_gru(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 12)
    """
    drawn = init_gru(key, input_size, hidden_size, initialisation=initialisation, dtype=dtype)
    assert drawn.b is not None
    g_x, g_h = jnp.ones_like(drawn.b), jnp.ones_like(drawn.b)
    return LNGRUParams(drawn.w_x, drawn.w_h, drawn.b, drawn.b_hn, g_x, g_h)  # type: ignore[arg-type]


LN_GRU = declared(
    Cell(
        "ln-gru", 3, ln_gru_step, init_ln_gru, LNGRUParams, GRUCarry,
        gates_step=_gru, inputs=lambda params, rows_BG: _gates_and_candidate(rows_BG, params.g_x),
    )
)  # fmt: skip

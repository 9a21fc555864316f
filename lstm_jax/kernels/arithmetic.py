"""The arithmetic of each cell in the fast recurrence, inside its loops and around them.

Backward quantities that do not depend on the incoming gradient can be computed for all time steps
before the backward scan, or inside it while a row is in cache. On CPU (`bench/layer.py`) the former
was faster for the GRU, the latter for the LSTM, which recomputes the tanh of its gates.

sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so one tanh serves all gates of a step. The halves are folded
into the weights once (`fold`), before the input product, and differentiated by JAX.

Shapes: T time, B batch, H hidden size, G size of all gates together.
"""

from collections.abc import Callable
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.cells import GRUCarry, GRUParams, LSTMCarry, LSTMParams, RNNCarry, RNNParams
from lstm_jax.kernels.base import Blocks, Elementwise, Factors, Kernel, Row, Weights, blocks_of
from lstm_jax.precision import Products


def _halve(params: Any, *blocks: bool) -> Any:
    """Halve the columns of the sigmoid gates."""
    hidden_size = params.w_h.shape[1] // len(blocks)
    scale = jnp.repeat(jnp.array([0.5 if block else 1.0 for block in blocks]), hidden_size)
    scale_G = scale.astype(params.w_h.dtype)
    w_x, w_h = params.w_x * scale_G[None], params.w_h * scale_G[None]
    return params._replace(w_x=w_x, w_h=w_h, b=params.b * scale_G)


def _sigmoid(t: Array) -> Array:
    """sigmoid(x), from t = tanh(x / 2)."""
    return 0.5 * t + 0.5


def _sigmoid_slope(t: Array) -> Array:
    """D sigmoid(x) / d(x / 2), from t = tanh(x / 2)."""
    return 0.5 - 0.5 * t * t


# LSTM --------------------------------------------------------------------------------------------


def _lstm_forward(
    policy: Products, weights: Weights, b_G: Array, carry: LSTMCarry, row: Row
) -> tuple[LSTMCarry, Row, Array]:
    row = row.write(row.read() + b_G[None] + policy.dot(carry.h, weights[0]))
    # Without the barriers XLA recomputes gates and cell state inside the fusion for h.
    t_BG = lax.optimization_barrier(jnp.tanh(row.read()))
    i_BH, f_BH, g_BH, o_BH = jnp.split(t_BG, 4, axis=-1)
    c_BH = _sigmoid(f_BH) * carry.c + _sigmoid(i_BH) * g_BH
    c_BH = lax.optimization_barrier(c_BH)
    h_BH = _sigmoid(o_BH) * jnp.tanh(c_BH)
    for w_hr in weights[1:]:
        h_BH = policy.dot(h_BH, w_hr)
    return LSTMCarry(h_BH, c_BH), row, carry.c


def _lstm_backward(
    policy: Products, weights: Weights, row: Row, previous_c_BH: Array, dcarry: LSTMCarry
) -> tuple[LSTMCarry, Row, Any]:
    dh_BH, emitted = dcarry.h, None
    for w_rh in weights[1:]:
        dh_BH = policy.dot(dcarry.h, w_rh)
    i_BH, f_BH, g_BH, o_BH = jnp.split(lax.optimization_barrier(jnp.tanh(row.read())), 4, axis=-1)
    i, f, o = _sigmoid(i_BH), _sigmoid(f_BH), _sigmoid(o_BH)
    tanh_c_BH = lax.optimization_barrier(jnp.tanh(f * previous_c_BH + i * g_BH))
    dc_BH = lax.optimization_barrier(dcarry.c + dh_BH * o * (1 - tanh_c_BH * tanh_c_BH))
    row = row.write(
        dc_BH * g_BH * _sigmoid_slope(i_BH),
        dc_BH * previous_c_BH * _sigmoid_slope(f_BH),
        dc_BH * i * (1 - g_BH * g_BH),
        dh_BH * tanh_c_BH * _sigmoid_slope(o_BH),
    )
    if len(weights) > 1:
        emitted = (o * tanh_c_BH, dcarry.h)
    return LSTMCarry(policy.dot(row.read(), weights[0]), dc_BH * f), row, emitted


def _lstm_gather(
    policy: Products, factors: Array, previous_TBH: Array, drows_TBG: Array, emitted: Any
) -> tuple[Array, Weights]:
    dgates_TBG, dweights = _one_gather(policy, factors, previous_TBH, drows_TBG, None)
    if emitted is not None:
        dweights += (policy.weight_gradient(*emitted),)
    return dgates_TBG, dweights


def _one_gather(
    policy: Products, factors: Any, previous_TBH: Array, drows_TBG: Array, emitted: None
) -> tuple[Array, Weights]:
    """`gather` of a cell with one recurrent product, which enters all gates."""
    return drows_TBG, (policy.weight_gradient(previous_TBH, drows_TBG),)


def _lstm_cell(
    operands: Blocks, carry: LSTMCarry, tanh: Callable[[Array], Array] = jnp.tanh
) -> LSTMCarry:
    i_BH, f_BH, g_BH, o_BH = map(tanh, operands)
    c_BH = _sigmoid(f_BH) * carry.c + _sigmoid(i_BH) * g_BH
    return LSTMCarry(_sigmoid(o_BH) * tanh(c_BH), c_BH)


def _lstm_prepare(
    rows_TBG: Array, c_TBH: Array, b_G: Array | None, previous_TBH: Array
) -> tuple[Array, Array, Array]:
    t_TBG = jnp.tanh(rows_TBG)
    i_TBH, f_TBH, g_TBH, _ = jnp.split(t_TBG, 4, axis=-1)
    return t_TBG, c_TBH, jnp.tanh(_sigmoid(f_TBH) * c_TBH + _sigmoid(i_TBH) * g_TBH)


def _lstm_blocks(
    prepared: tuple[Array, Array, Array], dcarry: LSTMCarry, hold: Callable[[Array], Array]
) -> tuple[Blocks, Blocks]:
    t_BG, previous_c_BH, tanh_c_BH = prepared
    i_BH, f_BH, g_BH, o_BH = blocks_of(t_BG, 4)
    dc_BH = hold(dcarry.c + dcarry.h * _sigmoid(o_BH) * (1 - tanh_c_BH * tanh_c_BH))
    dgates = (
        dc_BH * g_BH * _sigmoid_slope(i_BH),
        dc_BH * previous_c_BH * _sigmoid_slope(f_BH),
        dc_BH * _sigmoid(i_BH) * (1 - g_BH * g_BH),
        dcarry.h * tanh_c_BH * _sigmoid_slope(o_BH),
    )
    return dgates, (dc_BH * _sigmoid(f_BH),)


_LSTM_ON_GPU = Elementwise(
    reads=("c",),
    others=0,
    operands=lambda from_x, from_h, biases: tuple(map(add, from_x, from_h)),
    cell=_lstm_cell,
    keep=lambda operands, carry: (jnp.concatenate(operands, axis=-1), carry.c),
    prepare=_lstm_prepare,
    backward=_lstm_blocks,
)


# GRU ---------------------------------------------------------------------------------------------


def _split_n(array: Array) -> tuple[Array, Array]:
    """`[..., 3H]` -> gates r and z `[..., 2H]`, and candidate n `[..., H]`."""
    rz, n = jnp.split(array, [2 * array.shape[-1] // 3], axis=-1)
    return rz, n


def _gru_after_forward(
    policy: Products, weights: Weights, b_G: Array, carry: GRUCarry, row: Row
) -> tuple[GRUCarry, Row, tuple[Array, Array]]:
    w_h, b_hn = weights
    rz_from_h_BG, n_from_h_BH = _split_n(policy.dot(carry.h, w_h))
    rz_from_x_BG, n_from_x_BH = _split_n(row.read() + b_G[None])
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + rz_from_h_BG))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    inside_BH = n_from_h_BH + b_hn[None]
    n_BH = lax.optimization_barrier(jnp.tanh(n_from_x_BH + r_BH * inside_BH))
    row = row.write(n_BH, start=t_BG.shape[-1])
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), row, (t_BG, inside_BH)


def _gru_after_factors(n_TBH: Array, extra: tuple[Array, Array], previous_TBH: Array) -> Factors:
    t_TBG, inside_TBH = extra
    r_TBH, z_TBH = jnp.split(t_TBG, 2, axis=-1)
    n = (1 - _sigmoid(z_TBH)) * (1 - n_TBH * n_TBH)
    return (
        n * inside_TBH * _sigmoid_slope(r_TBH),
        (previous_TBH - n_TBH) * _sigmoid_slope(z_TBH),
        n,
        n * _sigmoid(r_TBH),
        _sigmoid(z_TBH),
    )


def _gru_after_backward(
    policy: Products, weights: Weights, row: Row, factors: Factors, dcarry: GRUCarry
) -> tuple[GRUCarry, Row, Array]:
    r_BH, z_BH, n_BH, inside_BH, keep_BH = factors
    dh_BH = dcarry.h
    row = row.write(dh_BH * r_BH, dh_BH * z_BH, dh_BH * inside_BH)
    dprevious = GRUCarry(dh_BH * keep_BH + policy.dot(row.read(), weights[0]))
    return dprevious, row, dh_BH * n_BH


def _gru_after_gather(
    policy: Products, factors: Factors, previous_TBH: Array, dfrom_h_TBG: Array, dn_TBH: Array
) -> tuple[Array, Weights]:
    drz_TBG, dinside_TBH = _split_n(dfrom_h_TBG)
    dw_h = policy.weight_gradient(previous_TBH, dfrom_h_TBG)
    return jnp.concatenate([drz_TBG, dn_TBH], axis=-1), (dw_h, dinside_TBH.sum((0, 1)))


def _gru_after_operands(from_x: Blocks, from_h: Blocks, biases: Blocks) -> Blocks:
    """Operands of r and z, what the reset multiplies, and the input part of n."""
    r_BH, z_BH, inside_BH = from_h
    return from_x[0] + r_BH, from_x[1] + z_BH, inside_BH + biases[0], from_x[2]


def _gru_after_cell(
    operands: Blocks, carry: GRUCarry, tanh: Callable[[Array], Array] = jnp.tanh
) -> GRUCarry:
    r_BH, z_BH, inside_BH, n_from_x_BH = operands
    n_BH = tanh(n_from_x_BH + _sigmoid(tanh(r_BH)) * inside_BH)
    return GRUCarry(n_BH + _sigmoid(tanh(z_BH)) * (carry.h - n_BH))


def _gru_after_prepare(
    gates_x_TBG: Array, extra: tuple[Array, Array], b_G: Array | None, previous_TBH: Array
) -> Factors:
    t_TBG, inside_TBH = jnp.tanh(extra[0]), extra[1]
    from_x_TBH = _split_n(gates_x_TBG if b_G is None else gates_x_TBG + b_G[None, None])[1]
    r_TBH = _sigmoid(jnp.split(t_TBG, 2, axis=-1)[0])
    n_TBH = jnp.tanh(from_x_TBH + r_TBH * inside_TBH)
    return _gru_after_factors(n_TBH, (t_TBG, inside_TBH), previous_TBH)


def _gru_after_blocks(factors: Factors, dcarry: GRUCarry, hold: Any) -> tuple[Blocks, Blocks]:
    r_BH, z_BH, n_BH, inside_BH, keep_BH = (factor * dcarry.h for factor in factors)
    return (r_BH, z_BH, inside_BH, n_BH), (keep_BH,)


_GRU_AFTER_ON_GPU = Elementwise(
    reads=("h",),
    others=1,
    operands=_gru_after_operands,
    cell=_gru_after_cell,
    keep=lambda operands, _: (None, (jnp.concatenate(operands[:2], axis=-1), operands[2])),
    prepare=_gru_after_prepare,
    backward=_gru_after_blocks,
)


def _gru_before_forward(
    policy: Products, weights: Weights, b_G: Array, carry: GRUCarry, row: Row
) -> tuple[GRUCarry, Row, Array]:
    w_rz, w_n = weights
    rz_from_x_BG, n_from_x_BH = _split_n(row.read() + b_G[None])
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + policy.dot(carry.h, w_rz)))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    n_BH = jnp.tanh(n_from_x_BH + policy.dot(r_BH * carry.h, w_n))
    n_BH = lax.optimization_barrier(n_BH)
    row = row.write(n_BH, start=t_BG.shape[-1])
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), row, t_BG


def _gru_before_factors(saved_TBG: Array, t_TBG: Array, previous_TBH: Array) -> Factors:
    r_TBH, z_TBH = jnp.split(t_TBG, 2, axis=-1)
    n_TBH = _split_n(saved_TBG)[1]
    return (
        previous_TBH * _sigmoid_slope(r_TBH),
        (previous_TBH - n_TBH) * _sigmoid_slope(z_TBH),
        (1 - _sigmoid(z_TBH)) * (1 - n_TBH * n_TBH),
        _sigmoid(r_TBH),
        _sigmoid(z_TBH),
    )


def _gru_before_backward(
    policy: Products, weights: Weights, row: Row, factors: Factors, dcarry: GRUCarry
) -> tuple[GRUCarry, Row, None]:
    w_rz, w_n = weights
    r_BH, z_BH, n_BH, reset_BH, keep_BH = factors
    dh_BH = dcarry.h
    dn_BH = dh_BH * n_BH
    dreset_h_BH = policy.dot(dn_BH, w_n)
    row = row.write(dreset_h_BH * r_BH, dh_BH * z_BH, dn_BH)
    from_rz_BH = policy.dot(_split_n(row.read())[0], w_rz)
    return GRUCarry(dh_BH * keep_BH + dreset_h_BH * reset_BH + from_rz_BH), row, None


def _gru_before_gather(
    policy: Products, factors: Factors, previous_TBH: Array, dgates_TBG: Array, emitted: None
) -> tuple[Array, Weights]:
    drz_TBG, dn_TBH = _split_n(dgates_TBG)
    reset_TBH = factors[3]
    dw_rz = policy.weight_gradient(previous_TBH, drz_TBG)
    return dgates_TBG, (dw_rz, policy.weight_gradient(reset_TBH * previous_TBH, dn_TBH))


# RNN ---------------------------------------------------------------------------------------------


def _rnn_backward(
    policy: Products, weights: Weights, row: Row, slope_BH: Array, dcarry: RNNCarry
) -> tuple[RNNCarry, Row, None]:
    row = row.write(dcarry.h * slope_BH)
    return RNNCarry(policy.dot(row.read(), weights[0])), row, None


def _rnn_kernel(activation: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Kernel:
    """The kernel for an activation whose slope is a function of its value."""

    def forward(
        policy: Products, weights: Weights, b_G: Array, carry: RNNCarry, row: Row
    ) -> tuple[RNNCarry, Row, None]:
        h_BH = activation(row.read() + b_G[None] + policy.dot(carry.h, weights[0]))
        h_BH = lax.optimization_barrier(h_BH)
        row = row.write(h_BH)
        # Reading back the row just written saves a copy, but XLA would compute a tanh twice.
        return RNNCarry(h_BH if activation is jnp.tanh else row.read()), row, None

    on_gpu = Elementwise(
        reads=(),
        others=0,
        operands=lambda from_x, from_h, biases: tuple(map(add, from_x, from_h)),
        cell=lambda operands, carry: RNNCarry(activation(operands[0])),
        keep=lambda operands, _: (activation(operands[0]), None),
        prepare=lambda h_TBH, _, b_G, previous_TBH: slope(h_TBH),
        backward=lambda slope_BH, dcarry, hold: ((dcarry.h * slope_BH,), ()),
    )
    return Kernel(
        lambda params: params,
        lambda params: (params.w_h,),
        forward,
        lambda h_TBH, extra, previous_TBH: slope(h_TBH),
        _rnn_backward,
        _one_gather,
        on_gpu,
    )


_RNN = {
    "tanh": _rnn_kernel(jnp.tanh, lambda h: 1 - h * h),
    "relu": _rnn_kernel(jax.nn.relu, lambda h: (h > 0).astype(h.dtype)),
}
RNN_ACTIVATIONS = tuple(_RNN)
_LSTM = Kernel(
    lambda params: _halve(params, True, True, False, True),
    lambda params: (params.w_h,) if params.w_hr is None else (params.w_h, params.w_hr),
    _lstm_forward,
    lambda saved_TBG, previous_c_TBH, previous_TBH: previous_c_TBH,
    _lstm_backward,
    _lstm_gather,
    _LSTM_ON_GPU,
)
_GRU_AFTER = Kernel(
    lambda params: _halve(params, True, True, False),
    lambda params: (params.w_h, params.b_hn),
    _gru_after_forward,
    lambda saved_TBG, *others: _gru_after_factors(_split_n(saved_TBG)[1], *others),
    _gru_after_backward,
    _gru_after_gather,
    _GRU_AFTER_ON_GPU,
    in_place=True,
)
_GRU_BEFORE = Kernel(
    lambda params: _halve(params, True, True, False),
    lambda params: _split_n(params.w_h),
    _gru_before_forward,
    _gru_before_factors,
    _gru_before_backward,
    _gru_before_gather,
    in_place=True,
)


def kernel_of(params: RNNParams | LSTMParams | GRUParams, activation: str = "tanh") -> Kernel:
    """The arithmetic for these parameters, by type and, for a GRU, by reset form.

    The activation of an RNN is one of `RNN_ACTIVATIONS`.
    """
    if isinstance(params, LSTMParams):
        return _LSTM if params.w_hr is None else _LSTM._replace(on_gpu=None)
    if isinstance(params, RNNParams):
        return _RNN[activation]
    return _GRU_BEFORE if params.b_hn is None else _GRU_AFTER

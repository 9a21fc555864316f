"""The fast recurrence: a scan over hoisted input products, with a backward pass of its own.

The forward scan sees only `gates_x = xs w_x + b`, formed before it for all times at once, and
saves what each step's activations were. From these the backward pass first computes, for all
times at once, every factor that does not depend on the gradient that flows back; its reverse scan
then only multiplies, and emits the gates' gradients; and one product after it forms each weight
gradient, contracted over time and batch together.

sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so one tanh serves all gates of a step. The halves are folded
into the weights once (`fold`), before the input product, and differentiated by JAX.

Shapes: T time, B batch, H hidden size, G gates side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.cells import GRUCarry, GRUParams, LSTMCarry, LSTMParams, RNNCarry, RNNParams
from lstm_jax.kernels.carries import reset_rows, select_rows
from lstm_jax.precision import Products

Weights = tuple[Array, ...]


class Kernel(NamedTuple):
    """One cell's arithmetic, split into what runs inside the loops and what runs outside them.

    Attributes:
        fold: parameters -> the same with the sigmoids' halves folded into the weights.
        weights: folded parameters -> what the recurrence itself needs of them.
        forward: (policy, weights, carry, gates_x [B, G]) -> (carry, saved activations).
        factors: (saved [T, ...], previous carries [T, ...], carries [T, ...]) -> the factors of
            the backward step, for all times.
        backward: (policy, weights, factors, gradient of the new carry) -> (emitted gradients,
            gradient of the previous carry).
        gather: (policy, weights, saved, previous carries, emitted) -> (gradient of gates_x
            [T, B, G], gradients of the weights), for all times.
    """

    fold: Callable[[Any], Any]
    weights: Callable[[Any], Weights]
    forward: Callable[..., tuple[Any, Any]]
    factors: Callable[..., Any]
    backward: Callable[..., tuple[Any, Any]]
    gather: Callable[..., tuple[Array, Weights]]


def run(
    kernel: Kernel,
    policy: Products,
    weights: Weights,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, Array]:
    """Runs the recurrence; reverse mode only.

    Args:
        kernel: the cell's arithmetic, from `kernel_of`.
        policy: dtypes of the recurrent product.
        weights: `kernel.weights(kernel.fold(params))`.
        carry: initial carry, in the accumulator's dtype.
        gates_TBG: the input's share of the gates, of the folded parameters.
        mask_TB: True = a real step; None = all are.
        resets_TB: True = the carry is zeroed before this step is taken, in processing order.
        reverse: run from the last time to the first.
        unroll: steps per iteration of the loop.

    Returns:
        The final carry, and the hidden state carried out of each step `[T, B, H]`.
    """
    return _run(kernel, policy, reverse, unroll, weights, carry, gates_TBG, mask_TB, resets_TB)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    weights: Weights,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[Any, Array]:
    inputs = (weights, carry, gates_TBG, mask_TB, resets_TB)
    return _run_forward(kernel, policy, reverse, unroll, *inputs)[0]


def _run_forward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    weights: Weights,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    operands = _operands(policy, weights)

    def step(carry: Any, inputs: tuple[Array, Array | None, Array | None]) -> tuple[Any, Any]:
        gates_BG, mask_B, reset_B = inputs
        previous = reset_rows(reset_B, carry)
        new, saved = kernel.forward(policy, operands, previous, gates_BG)
        carry = select_rows(mask_B, new, previous)
        return carry, (carry, saved)

    inputs = (gates_TBG, mask_TB, resets_TB)
    final, (carries, saved) = lax.scan(step, carry, inputs, reverse=reverse, unroll=unroll)
    return (final, carries.h), (weights, carry, carries, saved, mask_TB, resets_TB)


def _run_backward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    residuals: tuple[Any, ...],
    cotangents: tuple[Any, Array],
) -> tuple[Weights, Any, Array, None, None]:
    weights, carry, carries, saved, mask_TB, resets_TB = residuals
    dcarry, dhs_TBH = cotangents
    operands = _operands(policy, weights)
    previous = reset_rows(resets_TB, _previous(carry, carries, reverse))
    factors = kernel.factors(saved, previous, carries)

    def step(dcarry: Any, inputs: tuple[Array, Any, Array | None, Array | None]) -> tuple[Any, Any]:
        dh_BH, factors, mask_B, reset_B = inputs
        dcarry = dcarry._replace(h=dcarry.h + dh_BH)
        zeros = jax.tree.map(jnp.zeros_like, dcarry)
        emitted, dprevious = kernel.backward(
            policy, operands, factors, select_rows(mask_B, dcarry, zeros)
        )
        if mask_B is not None:
            held = select_rows(mask_B, zeros, dcarry)
            dprevious = jax.tree.map(jnp.add, dprevious, held)
        return reset_rows(reset_B, dprevious), emitted

    inputs = (dhs_TBH, factors, mask_TB, resets_TB)
    dcarry, emitted = lax.scan(step, dcarry, inputs, reverse=not reverse, unroll=unroll)
    dgates_TBG, dweights = kernel.gather(policy, weights, saved, previous, emitted)
    dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
    return dweights, dcarry, dgates_TBG, None, None


_run.defvjp(_run_forward, _run_backward)


def _operands(policy: Products, weights: Weights) -> Weights:
    """The matrices as operands, cast once outside the loop; biases are added, so they stay."""
    return tuple(policy.cast(w) if w.ndim == 2 else w for w in weights)


def _previous(carry: Any, carries: Any, reverse: bool) -> Any:
    """The carry that went into each step, from the initial one and those that came out."""

    def shift(first: Array, rest: Array) -> Array:
        parts = [rest[1:], first[None]] if reverse else [first[None], rest[:-1]]
        return jnp.concatenate(parts)

    return jax.tree.map(shift, carry, carries)


def _back_through(policy: Products, dgates_BG: Array, w_HG: Array) -> Array:
    return policy.einsum("bg,hg->bh", dgates_BG, w_HG)


def _halve(params: Any, *blocks: bool) -> Any:
    """Halves the columns of the gates that are sigmoids."""
    hidden_size = params.w_h.shape[0]
    scale = jnp.repeat(jnp.array([0.5 if block else 1.0 for block in blocks]), hidden_size)
    scale_G = scale.astype(params.w_h.dtype)
    return params._replace(w_x=params.w_x * scale_G, w_h=params.w_h * scale_G, b=params.b * scale_G)


def _sigmoid(t: Array) -> Array:
    """The sigmoid of x, from t = tanh(x / 2)."""
    return 0.5 * t + 0.5


def _sigmoid_slope(t: Array) -> Array:
    """D sigmoid(x) / d(x / 2), from t = tanh(x / 2)."""
    return 0.5 - 0.5 * t * t


# LSTM --------------------------------------------------------------------------------------------


def _lstm_fold(params: LSTMParams) -> LSTMParams:
    return _halve(params, True, True, False, True)  # type: ignore[no-any-return]


def _lstm_forward(
    policy: Products, weights: Weights, carry: LSTMCarry, gates_BG: Array
) -> tuple[LSTMCarry, Array]:
    t_BG = jnp.tanh(gates_BG + policy.dot(carry.h, weights[0]))
    # Without the barriers XLA computes gates and cell again inside the fusion for h.
    t_BG = lax.optimization_barrier(t_BG)
    i_BH, f_BH, g_BH, o_BH = jnp.split(t_BG, 4, axis=-1)
    c_BH = _sigmoid(f_BH) * carry.c + _sigmoid(i_BH) * g_BH
    c_BH = lax.optimization_barrier(c_BH)
    return LSTMCarry(_sigmoid(o_BH) * jnp.tanh(c_BH), c_BH), t_BG


def _lstm_factors(
    t_TBG: Array, previous: LSTMCarry, carries: LSTMCarry
) -> tuple[Array, Array, Array]:
    i_TBH, f_TBH, g_TBH, o_TBH = jnp.split(t_TBG, 4, axis=-1)
    i, f, o = _sigmoid(i_TBH), _sigmoid(f_TBH), _sigmoid(o_TBH)
    # Of the cell as this step formed it: under a mask `carries.c` is the one that was held.
    tanh_c = jnp.tanh(f * previous.c + i * g_TBH)
    gates = (
        g_TBH * _sigmoid_slope(i_TBH),
        previous.c * _sigmoid_slope(f_TBH),
        i * (1 - g_TBH * g_TBH),
        tanh_c * _sigmoid_slope(o_TBH),
    )
    return jnp.concatenate(gates, axis=-1), o * (1 - tanh_c * tanh_c), f


def _lstm_backward(
    policy: Products,
    weights: Weights,
    factors: tuple[Array, Array, Array],
    dcarry: LSTMCarry,
) -> tuple[Array, LSTMCarry]:
    gates_BG, cell_BH, f_BH = factors
    dc_BH = dcarry.c + dcarry.h * cell_BH
    dgates_BG = gates_BG * jnp.concatenate([dc_BH, dc_BH, dc_BH, dcarry.h], axis=-1)
    dh_BH = _back_through(policy, dgates_BG, weights[0])
    return dgates_BG, LSTMCarry(dh_BH, dc_BH * f_BH)


def _lstm_gather(
    policy: Products, weights: Weights, saved: Array, previous: LSTMCarry, dgates_TBG: Array
) -> tuple[Array, Weights]:
    return dgates_TBG, (policy.weight_gradient(previous.h, dgates_TBG),)


# GRU ---------------------------------------------------------------------------------------------


def _gru_fold(params: GRUParams) -> GRUParams:
    return _halve(params, True, True, False)  # type: ignore[no-any-return]


def _split_n(array: Array) -> tuple[Array, Array]:
    """`[..., 3H]` -> the gates r and z `[..., 2H]`, and the candidate n `[..., H]`."""
    rz, n = jnp.split(array, [2 * array.shape[-1] // 3], axis=-1)
    return rz, n


def _gru_after_forward(
    policy: Products, weights: Weights, carry: GRUCarry, gates_BG: Array
) -> tuple[GRUCarry, tuple[Array, Array, Array]]:
    w_h, b_hn = weights
    rz_from_h_BG, n_from_h_BH = _split_n(policy.dot(carry.h, w_h))
    rz_from_x_BG, n_from_x_BH = _split_n(gates_BG)
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + rz_from_h_BG))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    inside_BH = n_from_h_BH + b_hn
    n_BH = lax.optimization_barrier(jnp.tanh(n_from_x_BH + r_BH * inside_BH))
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), (t_BG, inside_BH, n_BH)


def _gru_after_factors(
    saved: tuple[Array, Array, Array], previous: GRUCarry, carries: GRUCarry
) -> tuple[Array, Array, Array]:
    t_TBG, inside_TBH, n_TBH = saved
    r_TBH, z_TBH = jnp.split(t_TBG, 2, axis=-1)
    n = (1 - _sigmoid(z_TBH)) * (1 - n_TBH * n_TBH)
    from_h = (
        n * inside_TBH * _sigmoid_slope(r_TBH),
        (previous.h - n_TBH) * _sigmoid_slope(z_TBH),
        n * _sigmoid(r_TBH),
    )
    return jnp.concatenate(from_h, axis=-1), n, _sigmoid(z_TBH)


def _gru_after_backward(
    policy: Products,
    weights: Weights,
    factors: tuple[Array, Array, Array],
    dcarry: GRUCarry,
) -> tuple[tuple[Array, Array], GRUCarry]:
    from_h_BG, n_BH, z_BH = factors
    dh_BH = dcarry.h
    dfrom_h_BG = from_h_BG * jnp.concatenate([dh_BH, dh_BH, dh_BH], axis=-1)
    dprevious_BH = dh_BH * z_BH + _back_through(policy, dfrom_h_BG, weights[0])
    return (dfrom_h_BG, dh_BH * n_BH), GRUCarry(dprevious_BH)


def _gru_after_gather(
    policy: Products,
    weights: Weights,
    saved: tuple[Array, Array, Array],
    previous: GRUCarry,
    emitted: tuple[Array, Array],
) -> tuple[Array, Weights]:
    dfrom_h_TBG, dn_TBH = emitted
    drz_TBG, dinside_TBH = _split_n(dfrom_h_TBG)
    dgates_TBG = jnp.concatenate([drz_TBG, dn_TBH], axis=-1)
    dw_h = policy.weight_gradient(previous.h, dfrom_h_TBG)
    return dgates_TBG, (dw_h, dinside_TBH.sum((0, 1)))


def _gru_before_forward(
    policy: Products, weights: Weights, carry: GRUCarry, gates_BG: Array
) -> tuple[GRUCarry, tuple[Array, Array]]:
    w_rz, w_n = weights
    rz_from_x_BG, n_from_x_BH = _split_n(gates_BG)
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + policy.dot(carry.h, w_rz)))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    n_BH = jnp.tanh(n_from_x_BH + policy.dot(r_BH * carry.h, w_n))
    n_BH = lax.optimization_barrier(n_BH)
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), (t_BG, n_BH)


def _gru_before_factors(
    saved: tuple[Array, Array], previous: GRUCarry, carries: GRUCarry
) -> tuple[Array, Array, Array, Array, Array]:
    t_TBG, n_TBH = saved
    r_TBH, z_TBH = jnp.split(t_TBG, 2, axis=-1)
    n = (1 - _sigmoid(z_TBH)) * (1 - n_TBH * n_TBH)
    r = previous.h * _sigmoid_slope(r_TBH)
    z = (previous.h - n_TBH) * _sigmoid_slope(z_TBH)
    return r, z, n, _sigmoid(r_TBH), _sigmoid(z_TBH)


def _gru_before_backward(
    policy: Products,
    weights: Weights,
    factors: tuple[Array, Array, Array, Array, Array],
    dcarry: GRUCarry,
) -> tuple[Array, GRUCarry]:
    w_rz, w_n = weights
    r_factor, z_factor, n_factor, r_BH, z_BH = factors
    dh_BH = dcarry.h
    dn_BH = dh_BH * n_factor
    dreset_h_BH = _back_through(policy, dn_BH, w_n)
    drz_BG = jnp.concatenate([dreset_h_BH * r_factor, dh_BH * z_factor], axis=-1)
    dprevious_BH = dh_BH * z_BH + dreset_h_BH * r_BH + _back_through(policy, drz_BG, w_rz)
    return jnp.concatenate([drz_BG, dn_BH], axis=-1), GRUCarry(dprevious_BH)


def _gru_before_gather(
    policy: Products,
    weights: Weights,
    saved: tuple[Array, Array],
    previous: GRUCarry,
    dgates_TBG: Array,
) -> tuple[Array, Weights]:
    drz_TBG, dn_TBH = _split_n(dgates_TBG)
    r_TBH = _sigmoid(jnp.split(saved[0], 2, axis=-1)[0])
    dw_rz = policy.weight_gradient(previous.h, drz_TBG)
    return dgates_TBG, (dw_rz, policy.weight_gradient(r_TBH * previous.h, dn_TBH))


# RNN ---------------------------------------------------------------------------------------------


def _rnn_forward(
    policy: Products, weights: Weights, carry: RNNCarry, gates_BG: Array
) -> tuple[RNNCarry, Array]:
    h_BH = lax.optimization_barrier(jnp.tanh(gates_BG + policy.dot(carry.h, weights[0])))
    return RNNCarry(h_BH), h_BH


def _rnn_factors(h_TBH: Array, previous: RNNCarry, carries: RNNCarry) -> Array:
    return 1 - h_TBH * h_TBH


def _rnn_backward(
    policy: Products, weights: Weights, slope_BH: Array, dcarry: RNNCarry
) -> tuple[Array, RNNCarry]:
    dgates_BH = dcarry.h * slope_BH
    return dgates_BH, RNNCarry(_back_through(policy, dgates_BH, weights[0]))


def _rnn_gather(
    policy: Products, weights: Weights, saved: Array, previous: RNNCarry, dgates_TBH: Array
) -> tuple[Array, Weights]:
    return dgates_TBH, (policy.weight_gradient(previous.h, dgates_TBH),)


_RNN = Kernel(
    lambda params: params,
    lambda params: (params.w_h,),
    _rnn_forward,
    _rnn_factors,
    _rnn_backward,
    _rnn_gather,
)
_LSTM = Kernel(
    _lstm_fold,
    lambda params: (params.w_h,),
    _lstm_forward,
    _lstm_factors,
    _lstm_backward,
    _lstm_gather,
)
_GRU_AFTER = Kernel(
    _gru_fold,
    lambda params: (params.w_h, params.b_hn),
    _gru_after_forward,
    _gru_after_factors,
    _gru_after_backward,
    _gru_after_gather,
)
_GRU_BEFORE = Kernel(
    _gru_fold,
    lambda params: _split_n(params.w_h),
    _gru_before_forward,
    _gru_before_factors,
    _gru_before_backward,
    _gru_before_gather,
)


def kernel_of(params: RNNParams | LSTMParams | GRUParams) -> Kernel:
    """The arithmetic for these parameters, by their type and, for a GRU, its reset form."""
    if isinstance(params, LSTMParams):
        return _LSTM
    if isinstance(params, RNNParams):
        return _RNN
    return _GRU_BEFORE if params.b_hn is None else _GRU_AFTER

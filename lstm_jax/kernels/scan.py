"""The fast recurrence: a scan over hoisted input products, with a backward pass of its own.

The forward scan sees only `gates_x = xs w_x`, formed before it for all times at once, and writes
each step's activations over them. From these the backward pass first computes, for all times at
once, every factor that does not depend on the gradient that flows back; its reverse scan then only
multiplies, and writes the gates' gradients over the activations; and one product after it forms
each weight gradient, contracted over time and batch together. Both scans carry the one buffer
`[T, B, G]`: outputs of a scan would be filled with zeros first, and take a place of their own.

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
Blocks = tuple[Array, ...]


class Kernel(NamedTuple):
    """One cell's arithmetic, split into what runs inside the loops and what runs outside them.

    Blocks are arrays `[B, ...]` that lie side by side, `[B, G]` in all.

    Attributes:
        fold: parameters -> the same with the sigmoids' halves folded into the weights.
        weights: folded parameters -> what the recurrence itself needs of them.
        forward: (policy, weights, carry, gates_x [B, G]) -> (carry, blocks of activations, what
            else the backward pass needs). A second block that is written before all of gates_x
            is read would make XLA copy the whole buffer at each step.
        factors: (activations [T, B, G], what else [T, ...], previous hidden states [T, B, H]) ->
            the factors of the backward step, for all times.
        backward: (policy, transposed weights, factors, gradient of the new carry) -> (blocks of
            gradients, what else to emit, and a function from the blocks side by side to the
            gradient of the previous carry).
        gather: (policy, factors, previous hidden states, gradients [T, B, G], what else was
            emitted) -> (gradient of gates_x [T, B, G], gradients of the weights).
    """

    fold: Callable[[Any], Any]
    weights: Callable[[Any], Weights]
    forward: Callable[..., tuple[Any, Blocks, Any]]
    factors: Callable[..., Any]
    backward: Callable[..., tuple[Blocks, Any, Callable[[Array], Any]]]
    gather: Callable[..., tuple[Array, Weights]]


def run(
    kernel: Kernel,
    policy: Products,
    weights: Weights,
    b_G: Array | None,
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
        b_G: bias of the folded parameters, or None where `gates_TBG` has it.
        carry: initial carry, in the accumulator's dtype.
        gates_TBG: the input's share of the gates, of the folded parameters, in that dtype.
        mask_TB: True = a real step; None = all are.
        resets_TB: True = the carry is zeroed before this step is taken, in processing order.
        reverse: run from the last time to the first.
        unroll: steps per iteration of the loop.

    Returns:
        The final carry, and the hidden state carried out of each step `[T, B, H]`.
    """
    return _run(kernel, policy, reverse, unroll, weights, b_G, carry, gates_TBG, mask_TB, resets_TB)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    weights: Weights,
    b_G: Array | None,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[Any, Array]:
    inputs = (weights, b_G, carry, gates_TBG, mask_TB, resets_TB)
    return _run_forward(kernel, policy, reverse, unroll, *inputs)[0]


def _run_forward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    weights: Weights,
    b_G: Array | None,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    operands = tuple(policy.cast(w) if w.ndim == 2 else w for w in weights)

    def step(
        state: tuple[Any, Array], inputs: tuple[Array, Array | None, Array | None]
    ) -> tuple[tuple[Any, Array], Any]:
        carry, buffer_TBG = state
        time, mask_B, reset_B = inputs
        previous = reset_rows(reset_B, carry)
        gates_BG = _read(buffer_TBG, time)
        if b_G is not None:
            gates_BG += b_G
        new, blocks, extra = kernel.forward(policy, operands, previous, gates_BG)
        carry = select_rows(mask_B, new, previous)
        return (carry, _write(buffer_TBG, time, blocks)), (carry.h, extra)

    inputs = (jnp.arange(gates_TBG.shape[0]), mask_TB, resets_TB)
    (final, saved_TBG), (hs_TBH, extra) = lax.scan(
        step, (carry, gates_TBG), inputs, reverse=reverse, unroll=unroll
    )
    residuals = (weights, b_G, carry.h, hs_TBH, saved_TBG, extra, mask_TB, resets_TB)
    return (final, hs_TBH), residuals


def _run_backward(
    kernel: Kernel,
    policy: Products,
    reverse: bool,
    unroll: int,
    residuals: tuple[Any, ...],
    cotangents: tuple[Any, Array],
) -> tuple[Weights, Array | None, Any, Array, None, None]:
    weights, b_G, h_BH, hs_TBH, saved_TBG, extra, mask_TB, resets_TB = residuals
    dcarry, dhs_TBH = cotangents
    operands = tuple(policy.transposed(w) if w.ndim == 2 else w for w in weights)
    previous_TBH = reset_rows(resets_TB, _previous(h_BH, hs_TBH, reverse))
    factors = kernel.factors(saved_TBG, extra, previous_TBH)

    def step(
        state: tuple[Any, Array], inputs: tuple[Array, Array, Any, Array | None, Array | None]
    ) -> tuple[tuple[Any, Array], Any]:
        dcarry, buffer_TBG = state
        time, dh_BH, factors, mask_B, reset_B = inputs
        dcarry = dcarry._replace(h=dcarry.h + dh_BH)
        zeros = jax.tree.map(jnp.zeros_like, dcarry)
        blocks, emitted, through = kernel.backward(
            policy, operands, factors, select_rows(mask_B, dcarry, zeros)
        )
        buffer_TBG = _write(buffer_TBG, time, blocks)
        dprevious = through(_read(buffer_TBG, time))
        if mask_B is not None:
            held = select_rows(mask_B, zeros, dcarry)
            dprevious = jax.tree.map(jnp.add, dprevious, held)
        return (reset_rows(reset_B, dprevious), buffer_TBG), emitted

    inputs = (jnp.arange(saved_TBG.shape[0]), dhs_TBH, factors, mask_TB, resets_TB)
    (dcarry, dblocks_TBG), emitted = lax.scan(
        step, (dcarry, saved_TBG), inputs, reverse=not reverse, unroll=unroll
    )
    dgates_TBG, dweights = kernel.gather(policy, factors, previous_TBH, dblocks_TBG, emitted)
    dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)
    db_G = None if b_G is None else dgates_TBG.sum((0, 1)).astype(b_G.dtype)
    return dweights, db_G, dcarry, dgates_TBG, None, None


_run.defvjp(_run_forward, _run_backward)


def _read(buffer_TBG: Array, time: Array) -> Array:
    array: Array = lax.dynamic_index_in_dim(buffer_TBG, time, keepdims=False)
    return array


def _write(buffer_TBG: Array, time: Array, blocks: Blocks) -> Array:
    """Writes the blocks side by side, to the end of a row of G.

    Concatenated first, they would cost XLA a branch for each number.
    """
    at = buffer_TBG.shape[-1] - sum(block.shape[-1] for block in blocks)
    for block in blocks:
        starts = (time, *(jnp.array(start, time.dtype) for start in (0, at)))
        buffer_TBG = lax.dynamic_update_slice(buffer_TBG, block[None], starts)
        at += block.shape[-1]
    return buffer_TBG


def _previous(h_BH: Array, hs_TBH: Array, reverse: bool) -> Array:
    """The hidden state before each step, from the initial one and those that came out."""
    parts = [hs_TBH[1:], h_BH[None]] if reverse else [h_BH[None], hs_TBH[:-1]]
    return jnp.concatenate(parts)


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
) -> tuple[LSTMCarry, Blocks, Array]:
    t_BG = jnp.tanh(gates_BG + policy.dot(carry.h, weights[0]))
    # Without the barriers XLA computes gates and cell again inside the fusion for h.
    t_BG = lax.optimization_barrier(t_BG)
    i_BH, f_BH, g_BH, o_BH = jnp.split(t_BG, 4, axis=-1)
    c_BH = _sigmoid(f_BH) * carry.c + _sigmoid(i_BH) * g_BH
    c_BH = lax.optimization_barrier(c_BH)
    return LSTMCarry(_sigmoid(o_BH) * jnp.tanh(c_BH), c_BH), (t_BG,), carry.c


def _lstm_factors(
    t_TBG: Array, previous_c_TBH: Array, previous_TBH: Array
) -> tuple[Blocks, Array, Array]:
    i_TBH, f_TBH, g_TBH, o_TBH = jnp.split(t_TBG, 4, axis=-1)
    i, f, o = _sigmoid(i_TBH), _sigmoid(f_TBH), _sigmoid(o_TBH)
    tanh_c = jnp.tanh(f * previous_c_TBH + i * g_TBH)
    gates = (
        g_TBH * _sigmoid_slope(i_TBH),
        previous_c_TBH * _sigmoid_slope(f_TBH),
        i * (1 - g_TBH * g_TBH),
        tanh_c * _sigmoid_slope(o_TBH),
    )
    return gates, o * (1 - tanh_c * tanh_c), f


def _lstm_backward(
    policy: Products,
    weights: Weights,
    factors: tuple[Blocks, Array, Array],
    dcarry: LSTMCarry,
) -> tuple[Blocks, None, Callable[[Array], LSTMCarry]]:
    (i_BH, f_BH, g_BH, o_BH), cell_BH, forget_BH = factors
    dc_BH = lax.optimization_barrier(dcarry.c + dcarry.h * cell_BH)

    def through(dgates_BG: Array) -> LSTMCarry:
        return LSTMCarry(policy.dot(dgates_BG, weights[0]), dc_BH * forget_BH)

    return (i_BH * dc_BH, f_BH * dc_BH, g_BH * dc_BH, o_BH * dcarry.h), None, through


def _one_gather(
    policy: Products, factors: Any, previous_TBH: Array, dgates_TBG: Array, emitted: None
) -> tuple[Array, Weights]:
    """Of a cell with one recurrent product, all of whose gates it adds to."""
    return dgates_TBG, (policy.weight_gradient(previous_TBH, dgates_TBG),)


# GRU ---------------------------------------------------------------------------------------------


def _gru_fold(params: GRUParams) -> GRUParams:
    return _halve(params, True, True, False)  # type: ignore[no-any-return]


def _split_n(array: Array) -> tuple[Array, Array]:
    """`[..., 3H]` -> the gates r and z `[..., 2H]`, and the candidate n `[..., H]`."""
    rz, n = jnp.split(array, [2 * array.shape[-1] // 3], axis=-1)
    return rz, n


def _gru_after_forward(
    policy: Products, weights: Weights, carry: GRUCarry, gates_BG: Array
) -> tuple[GRUCarry, Blocks, tuple[Array, Array]]:
    w_h, b_hn = weights
    rz_from_h_BG, n_from_h_BH = _split_n(policy.dot(carry.h, w_h))
    rz_from_x_BG, n_from_x_BH = _split_n(gates_BG)
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + rz_from_h_BG))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    inside_BH = n_from_h_BH + b_hn
    n_BH = lax.optimization_barrier(jnp.tanh(n_from_x_BH + r_BH * inside_BH))
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), (n_BH,), (t_BG, inside_BH)


def _gru_after_factors(saved_TBG: Array, extra: tuple[Array, Array], previous_TBH: Array) -> Blocks:
    t_TBG, inside_TBH = extra
    r_TBH, z_TBH = jnp.split(t_TBG, 2, axis=-1)
    n_TBH = _split_n(saved_TBG)[1]
    n = (1 - _sigmoid(z_TBH)) * (1 - n_TBH * n_TBH)
    return (
        n * inside_TBH * _sigmoid_slope(r_TBH),
        (previous_TBH - n_TBH) * _sigmoid_slope(z_TBH),
        n,
        n * _sigmoid(r_TBH),
        _sigmoid(z_TBH),
    )


def _gru_after_backward(
    policy: Products, weights: Weights, factors: Blocks, dcarry: GRUCarry
) -> tuple[Blocks, Array, Callable[[Array], GRUCarry]]:
    r_BH, z_BH, n_BH, inside_BH, keep_BH = factors
    dh_BH = dcarry.h

    def through(dfrom_h_BG: Array) -> GRUCarry:
        return GRUCarry(dh_BH * keep_BH + policy.dot(dfrom_h_BG, weights[0]))

    return (dh_BH * r_BH, dh_BH * z_BH, dh_BH * inside_BH), dh_BH * n_BH, through


def _gru_after_gather(
    policy: Products, factors: Blocks, previous_TBH: Array, dfrom_h_TBG: Array, dn_TBH: Array
) -> tuple[Array, Weights]:
    drz_TBG, dinside_TBH = _split_n(dfrom_h_TBG)
    dw_h = policy.weight_gradient(previous_TBH, dfrom_h_TBG)
    return jnp.concatenate([drz_TBG, dn_TBH], axis=-1), (dw_h, dinside_TBH.sum((0, 1)))


def _gru_before_forward(
    policy: Products, weights: Weights, carry: GRUCarry, gates_BG: Array
) -> tuple[GRUCarry, Blocks, Array]:
    w_rz, w_n = weights
    rz_from_x_BG, n_from_x_BH = _split_n(gates_BG)
    t_BG = lax.optimization_barrier(jnp.tanh(rz_from_x_BG + policy.dot(carry.h, w_rz)))
    r_BH, z_BH = jnp.split(_sigmoid(t_BG), 2, axis=-1)
    n_BH = jnp.tanh(n_from_x_BH + policy.dot(r_BH * carry.h, w_n))
    n_BH = lax.optimization_barrier(n_BH)
    return GRUCarry(n_BH + z_BH * (carry.h - n_BH)), (n_BH,), t_BG


def _gru_before_factors(saved_TBG: Array, t_TBG: Array, previous_TBH: Array) -> Blocks:
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
    policy: Products, weights: Weights, factors: Blocks, dcarry: GRUCarry
) -> tuple[Blocks, None, Callable[[Array], GRUCarry]]:
    w_rz, w_n = weights
    r_BH, z_BH, n_BH, reset_BH, keep_BH = factors
    dh_BH = dcarry.h
    dn_BH = dh_BH * n_BH
    dreset_h_BH = policy.dot(dn_BH, w_n)

    def through(dgates_BG: Array) -> GRUCarry:
        from_rz_BH = policy.dot(_split_n(dgates_BG)[0], w_rz)
        return GRUCarry(dh_BH * keep_BH + dreset_h_BH * reset_BH + from_rz_BH)

    return (dreset_h_BH * r_BH, dh_BH * z_BH, dn_BH), None, through


def _gru_before_gather(
    policy: Products, factors: Blocks, previous_TBH: Array, dgates_TBG: Array, emitted: None
) -> tuple[Array, Weights]:
    drz_TBG, dn_TBH = _split_n(dgates_TBG)
    reset_TBH = factors[3]
    dw_rz = policy.weight_gradient(previous_TBH, drz_TBG)
    return dgates_TBG, (dw_rz, policy.weight_gradient(reset_TBH * previous_TBH, dn_TBH))


# RNN ---------------------------------------------------------------------------------------------


def _rnn_forward(
    policy: Products, weights: Weights, carry: RNNCarry, gates_BG: Array
) -> tuple[RNNCarry, Blocks, None]:
    h_BH = lax.optimization_barrier(jnp.tanh(gates_BG + policy.dot(carry.h, weights[0])))
    return RNNCarry(h_BH), (h_BH,), None


def _rnn_factors(h_TBH: Array, extra: None, previous_TBH: Array) -> Array:
    return 1 - h_TBH * h_TBH


def _rnn_backward(
    policy: Products, weights: Weights, slope_BH: Array, dcarry: RNNCarry
) -> tuple[Blocks, None, Callable[[Array], RNNCarry]]:
    def through(dgates_BH: Array) -> RNNCarry:
        return RNNCarry(policy.dot(dgates_BH, weights[0]))

    return (dcarry.h * slope_BH,), None, through


_RNN = Kernel(
    lambda params: params,
    lambda params: (params.w_h,),
    _rnn_forward,
    _rnn_factors,
    _rnn_backward,
    _one_gather,
)
_LSTM = Kernel(
    _lstm_fold,
    lambda params: (params.w_h,),
    _lstm_forward,
    _lstm_factors,
    _lstm_backward,
    _one_gather,
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

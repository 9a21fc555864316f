"""Layers of cells without a kernel: a plain scan over time, differentiated by JAX.

Shapes: T time, B batch, D input size, H hidden size.
"""

from __future__ import annotations

from typing import Unpack

from jax import Array

from lstm_jax import cells
from lstm_jax.recurrence import LayerOptions, layer_of


def ln_lstm(
    params: cells.LNLSTMParams,
    carry: cells.LSTMCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.LSTMCarry, Array]:
    """A layer of layer-normalised LSTMs: `ln_lstm_step` at each time. Otherwise like `lstm`.

    The input products and their normalisation are computed for all time steps before the loop.
    There is no custom backward pass, so training is slower than with `lstm`.

    Examples:
        >>> params = lstm_jax.init_ln_lstm(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.ln_lstm(params, None, jnp.ones((10, 2, 3)))
        >>> carry.c.shape, ys.shape
        ((2, 4), (10, 2, 4))
    """
    return layer_of(cells.LN_LSTM, params, carry, xs, options)[:2]


def ln_gru(
    params: cells.LNGRUParams,
    carry: cells.GRUCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.GRUCarry, Array]:
    """A layer of layer-normalised GRUs: `ln_gru_step` at each time. Otherwise like `ln_lstm`.

    Examples:
        >>> params = lstm_jax.init_ln_gru(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.ln_gru(params, None, jnp.ones((10, 2, 3)))
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_of(cells.LN_GRU, params, carry, xs, options)[:2]


def mgu(
    params: cells.MGUParams,
    carry: cells.GRUCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.GRUCarry, Array]:
    """A layer of minimal gated units: `mgu_step` at each time. Otherwise like `ln_lstm`.

    Examples:
        >>> params = lstm_jax.init_mgu(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.mgu(params, None, jnp.ones((10, 2, 3)))
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_of(cells.MGU, params, carry, xs, options)[:2]

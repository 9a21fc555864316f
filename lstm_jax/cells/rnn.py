"""The tanh cell of Elman (1990).

Shapes: B batch, D input size, H hidden size, G = H.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, check_step, declared, input_gates
from lstm_jax.initialisation import Initialisation, init_gates
from lstm_jax.precision import ComputeDtype, cast_tree, products


class RNNParams(NamedTuple):
    """Weights of a tanh cell: `w_x [D, H]`, `w_h [H, H]`, `b [H]`.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), 3, 4).w_h.shape
        (4, 4)
    """

    w_x: Array
    w_h: Array
    b: Array


class RNNCarry(NamedTuple):
    """State of a tanh cell: `h [B, H]`.

    Examples:
        >>> lstm_jax.RNNCarry(h=jnp.zeros((2, 4)))._fields
        ('h',)
    """

    h: Array


def rnn_step(
    params: RNNParams, carry: RNNCarry, x: Array, *, compute_dtype: ComputeDtype | None = None
) -> tuple[RNNCarry, Array]:
    """One step of the tanh cell of Elman (1990): `h' = tanh(x w_x + h w_h + b)`.

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    Examples:
        >>> params = lstm_jax.init_rnn(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.rnn_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    check_step(RNN, params, carry, x)
    policy = products(compute_dtype, params.w_h.dtype)
    h_BH = jnp.tanh(input_gates(policy, params, x) + policy.dot(carry.h, params.w_h))
    return RNNCarry(h_BH), h_BH


def init_rnn(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> RNNParams:
    """Draw the weights of a tanh cell; see `init_lstm` for the arguments.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 4)
    """
    w_x, w_h, b, _ = init_gates(key, input_size, hidden_size, 1, initialisation, dtype)
    return cast_tree(RNNParams(w_x, w_h, b), dtype)


RNN = declared(Cell("rnn", 1, rnn_step, init_rnn, RNNParams, RNNCarry))

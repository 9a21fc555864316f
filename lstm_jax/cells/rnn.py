"""The tanh cell of Elman (1990).

Shapes: B batch, D input size, H hidden size, G = H.
"""

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, declared
from lstm_jax.cells.options import StepOptions, function_of, scaled, take_step
from lstm_jax.initialisation import Initialisation, init_gates
from lstm_jax.precision import ComputeDtype, cast_tree


class RNNParams(NamedTuple):
    """Weights of a tanh cell: `w_x [D, H]`, `w_h [H, H]`, `b [H]`, None for no biases.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), 3, 4).w_h.shape
        (4, 4)
    """

    w_x: Array
    w_h: Array
    b: Array | None


class RNNCarry(NamedTuple):
    """State of a tanh cell: `h [B, H]`.

    Examples:
        >>> lstm_jax.RNNCarry(h=jnp.zeros((2, 4)))._fields
        ('h',)
    """

    h: Array


def rnn_step(
    params: RNNParams,
    carry: RNNCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
    **options: Unpack[StepOptions],
) -> tuple[RNNCarry, Array]:
    """One step of the tanh cell of Elman (1990): `h' = tanh(x w_x + h w_h + b)`.

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only. The options
    are `activation` (PyTorch's `nonlinearity="relu"`) and `state_scale`.

    Examples:
        >>> params = lstm_jax.init_rnn(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.rnn_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(RNN, params, carry, x, compute_dtype, options)


def _rnn(
    params: RNNParams,
    carry: RNNCarry,
    gates_BH: Array,
    dot: Any,
    *,
    activation: Any = "tanh",
    state_scale: Array | None = None,
) -> RNNCarry:
    sums_BH = gates_BH + dot(scaled(carry.h, state_scale), params.w_h)
    return RNNCarry(function_of("activation", activation)(sums_BH))


def init_rnn(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    use_bias: bool = True,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> RNNParams:
    """Draw the weights of a tanh cell; see `init_lstm` for the arguments.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 4)
    """
    w_x, w_h, b, _ = init_gates(key, input_size, hidden_size, 1, initialisation, dtype)
    return cast_tree(RNNParams(w_x, w_h, b if use_bias else None), dtype)


RNN = declared(Cell("rnn", 1, rnn_step, init_rnn, RNNParams, RNNCarry, options_step=_rnn))

"""The LSTM, with an optional projection of its hidden state.

Shapes: B batch, D input size, H hidden size, G = 4H: gates i, f, g, o concatenated.
"""

import math
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
from jax import Array, random
from jax.nn import initializers
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, declared
from lstm_jax.cells.options import StepOptions, function_of, scaled, take_step
from lstm_jax.initialisation import Initialisation, init_gates, uniform
from lstm_jax.precision import ComputeDtype, cast_tree, draw_dtype


class LSTMParams(NamedTuple):
    """Weights of an LSTM: `w_x [D, 4H]`, `w_h [H, 4H]`, `b [4H]`; gate order i, f, g, o.

    `b` is None for no biases. With a projection `w_hr [H, P]` the hidden state has size P and `w_h`
    is `[P, 4H]`.

    Examples:
        >>> lstm_jax.init_lstm(jax.random.key(0), 3, 4).w_x.shape
        (3, 16)
    """

    w_x: Array
    w_h: Array
    b: Array | None
    w_hr: Array | None = None


class LSTMCarry(NamedTuple):
    """State of an LSTM: hidden state `h [B, H]` (`[B, P]` if projected), cell state `c [B, H]`.

    Examples:
        >>> lstm_jax.LSTMCarry(h=jnp.zeros((2, 4)), c=jnp.ones((2, 4))).c.shape
        (2, 4)
    """

    h: Array
    c: Array


def lstm_step(
    params: LSTMParams,
    carry: LSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
    **options: Unpack[StepOptions],
) -> tuple[LSTMCarry, Array]:
    """One step of an LSTM, with the gate order i, f, g, o of PyTorch and Keras.

        i, f, g, o = x w_x + h w_h + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')                with a projection: (sigmoid(o) tanh(c')) w_hr

    Args:
        params: weights.
        carry: `h [B, H]` (`[B, P]` if projected) and `c [B, H]`.
        x: input `[B, D]`, or integers `[B]` that stand for one-hot rows of size D.
        compute_dtype: see `lstm_jax.precision.products`.
        **options: `activation` in the place of tanh and `recurrent_activation` in that of the
            sigmoid, functions or Keras's names (`lstm_jax.cells.Activation`); `state_scale`
            `[B, H]`, which multiplies h before the product with `w_h`; `candidate_scale` `[B, H]`,
            which multiplies tanh(g), in a GRU n.

    Returns:
        The new carry, and its `h` as the output.

    Raises:
        TypeError: parameters of another cell, or an argument that is not an array.
        ValueError: shapes do not match.

    References:
        Hochreiter and Schmidhuber (1997); forget gates: Gers et al. (2000); projection: Sak et
        al., arXiv:1402.1128.

    Examples:
        >>> params = lstm_jax.init_lstm(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.lstm_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> carry.c.shape, h.shape
        ((2, 4), (2, 4))
    """
    return take_step(LSTM, params, carry, x, compute_dtype, options)


def _lstm(
    params: LSTMParams,
    carry: LSTMCarry,
    gates_BG: Array,
    dot: Any,
    *,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    state_scale: Array | None = None,
    candidate_scale: Array | None = None,
) -> LSTMCarry:
    tanh = function_of("activation", activation)
    sigmoid = function_of("recurrent_activation", recurrent_activation)
    gates_BG = gates_BG + dot(scaled(carry.h, state_scale), params.w_h)
    i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
    c_BH = sigmoid(f_BH) * carry.c + sigmoid(i_BH) * scaled(tanh(g_BH), candidate_scale)
    h_BH = sigmoid(o_BH) * tanh(c_BH)
    return LSTMCarry(h_BH if params.w_hr is None else dot(h_BH, params.w_hr), c_BH)


def init_lstm(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    projection_size: int | None = None,
    use_bias: bool = True,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> LSTMParams:
    """Draw the weights of an LSTM.

    Args:
        key: a typed PRNG key.
        input_size: D.
        hidden_size: H.
        projection_size: P; None for no projection.
        use_bias: False for no biases: `b` is None.
        initialisation: `"pytorch"` draws all weights and both of PyTorch's biases (here summed)
            uniformly in +-1/sqrt(H). `"keras"` draws `w_x` Glorot uniform and `w_h` orthogonal.
            `"tf1"` draws one Glorot uniform kernel over input and hidden state. These two set
            biases to zero, and to 1 for the forget gate, and draw a projection Glorot uniform.
        dtype: dtype of the parameters; below float32 they are drawn in float32 and cast.

    Raises:
        ValueError: a size is not an integer of at least 1, or a name is unknown.

    Examples:
        >>> params = lstm_jax.init_lstm(jax.random.key(0), 3, 4, initialisation="keras")
        >>> params.b[:8].tolist()  # of the input and the forget gate
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    w_x, w_h, b, _ = init_gates(
        key, input_size, hidden_size, 4, initialisation, dtype, projection_size
    )
    if initialisation != "pytorch":
        b = b.at[hidden_size : 2 * hidden_size].set(1)
    params = LSTMParams(w_x, w_h, b if use_bias else None)
    if projection_size is None:
        return cast_tree(params, dtype)
    draw: Any = initializers.glorot_uniform()
    if initialisation == "pytorch":
        draw = uniform(1 / math.sqrt(hidden_size), draw_dtype(dtype))
    w_hr = draw(random.fold_in(key, 4), (hidden_size, projection_size))
    return cast_tree(params._replace(w_hr=w_hr), dtype)


LSTM = declared(Cell("lstm", 4, lstm_step, init_lstm, LSTMParams, LSTMCarry, options_step=_lstm))

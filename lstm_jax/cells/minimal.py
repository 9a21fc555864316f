"""The minGRU and minLSTM of Feng et al. (2024), whose gates do not depend on the state.

Shapes: B batch, D input size, H hidden size, G size of all gates together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, declared
from lstm_jax.cells.gru import GRUCarry
from lstm_jax.cells.options import take_step
from lstm_jax.initialisation import Initialisation, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree

MinGRUCarry = GRUCarry
MinLSTMCarry = GRUCarry
"""State of a minGRU, and of a minLSTM: `h [B, H]`."""


class MinGRUParams(NamedTuple):
    """Weights of a minGRU: `w_x [D, 2H]`, `b [2H]`; gate order z, n.

    Examples:
        >>> lstm_jax.init_mingru(jax.random.key(0), 3, 4).w_x.shape
        (3, 8)
    """

    w_x: Array
    b: Array


def mingru_step(
    params: MinGRUParams, carry: MinGRUCarry, x: Array, *, compute_dtype: ComputeDtype | None = None
) -> tuple[MinGRUCarry, Array]:
    """One step of a minGRU.

        z = sigmoid(x w_z + b_z)
        n = x w_n + b_n
        h' = (1 - z) h + z n

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Feng et al., arXiv:2410.01201.

    Examples:
        >>> params = lstm_jax.init_mingru(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.mingru_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(MINGRU, params, carry, x, compute_dtype)


def _mingru(params: MinGRUParams, carry: MinGRUCarry, gates_BG: Array) -> MinGRUCarry:
    z_BH, n_BH = jnp.split(gates_BG, 2, axis=-1)
    z_BH = jax.nn.sigmoid(z_BH)
    return MinGRUCarry((1 - z_BH) * carry.h + z_BH * n_BH)


def init_mingru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> MinGRUParams:
    """Draw the weights of a minGRU; see `init_lstm` for arguments and errors.

    `initialisation="pytorch"` draws everything uniformly in +-1/sqrt(H); `"keras"` and `"tf1"` draw
    Glorot uniform weights and set biases to zero.

    Examples:
        >>> lstm_jax.init_mingru(jax.random.key(0), input_size=3, hidden_size=4).b.shape
        (8,)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 2, initialisation, dtype)
    return cast_tree(MinGRUParams(w_x, b), dtype)


MINGRU = declared(
    Cell("mingru", 2, mingru_step, init_mingru, MinGRUParams, MinGRUCarry, _mingru, True)
)


class MinLSTMParams(NamedTuple):
    """Weights of a minLSTM: `w_x [D, 3H]`, `b [3H]`; gate order f, i, n.

    Examples:
        >>> lstm_jax.init_minlstm(jax.random.key(0), 3, 4).w_x.shape
        (3, 12)
    """

    w_x: Array
    b: Array


def minlstm_step(
    params: MinLSTMParams,
    carry: MinLSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[MinLSTMCarry, Array]:
    """One step of a minLSTM, whose two gates are normalised to sum to one.

        f, i = sigmoid(x w_f + b_f), sigmoid(x w_i + b_i)
        n = x w_n + b_n
        h' = f / (f + i) h + i / (f + i) n

    The quotients stay finite even where both gates round to zero.

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Feng et al., arXiv:2410.01201.

    Examples:
        >>> params = lstm_jax.init_minlstm(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.minlstm_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(MINLSTM, params, carry, x, compute_dtype)


def _minlstm(params: MinLSTMParams, carry: MinLSTMCarry, gates_BG: Array) -> MinLSTMCarry:
    f_BH, i_BH, n_BH = jnp.split(gates_BG, 3, axis=-1)
    f_BH = _share(f_BH, i_BH)
    return MinLSTMCarry(f_BH * carry.h + (1 - f_BH) * n_BH)


def _share(f: Array, i: Array) -> Array:
    """sigmoid(f) / (sigmoid(f) + sigmoid(i)), stable for any inputs.

    Uses 1 / sigmoid(x) = exp(-low) (exp(low) + exp(low - x)) with low = min(x, -20), which is
    smooth in the range of gates; forms with min(x, 0) or softplus get some second derivatives at 0
    wrong. Above 80, the square of the exponential would have no gradient.
    """
    low_f, low_i = jnp.minimum(f, -20), jnp.minimum(i, -20)
    apart = jnp.exp(jnp.minimum(low_i - low_f, 80))
    ratio = apart * (jnp.exp(low_f) + jnp.exp(low_f - f)) / (jnp.exp(low_i) + jnp.exp(low_i - i))
    return 1 / (1 + ratio)


def init_minlstm(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> MinLSTMParams:
    """Draw the weights of a minLSTM like `init_mingru`.

    Where that sets biases to zero, the forget gate's bias is 1 instead.

    Examples:
        >>> lstm_jax.init_minlstm(jax.random.key(0), input_size=3, hidden_size=4).b.shape
        (12,)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 3, initialisation, dtype)
    if initialisation != "pytorch":
        b = b.at[:hidden_size].set(1)
    return cast_tree(MinLSTMParams(w_x, b), dtype)


MINLSTM = declared(
    Cell("minlstm", 3, minlstm_step, init_minlstm, MinLSTMParams, MinLSTMCarry, _minlstm, True)
)

"""The minLSTM of Feng et al. (2024): an LSTM without what the gates take from the state.

Shapes: B batch, D input size, H hidden size, G = 3H gates f, i, n side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, step_units
from lstm_jax.initialisation import Initialisation, init_inputs
from lstm_jax.precision import ComputeDtype, cast_tree


class MinLSTMParams(NamedTuple):
    """Weights of a minLSTM: `w_x [D, 3H]`, `b [3H]`; order f, i, n.

    Examples:
        >>> lstm_jax.init_minlstm(jax.random.key(0), 3, 4).w_x.shape
        (3, 12)
    """

    w_x: Array
    b: Array

    @property
    def cell(self) -> Cell:
        """What it declares."""
        return MINLSTM


class MinLSTMCarry(NamedTuple):
    """State of a minLSTM: `h [B, H]`.

    Examples:
        >>> lstm_jax.MinLSTMCarry(h=jnp.zeros((2, 4))).h.shape
        (2, 4)
    """

    h: Array


def minlstm_step(
    params: MinLSTMParams,
    carry: MinLSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[MinLSTMCarry, Array]:
    """One step of a minLSTM, whose two gates are scaled to a sum of one.

        f, i = sigmoid(x w_f + b_f), sigmoid(x w_i + b_i)
        n = x w_n + b_n
        h' = f / (f + i) h + i / (f + i) n

    The quotients have a value where both gates are rounded to zero, too.

    Arguments, results and errors are those of `lstm_step`, with a carry `h [B, H]`
    and inputs `[B, D]`, or integers `[B]`.

    References:
        Feng et al., arXiv:2410.01201.

    Examples:
        >>> params = lstm_jax.init_minlstm(jax.random.key(0), 3, 4)
        >>> carry = lstm_jax.zero_carry(params, 2)
        >>> carry, h = lstm_jax.minlstm_step(params, carry, jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return step_units(MINLSTM, params, carry, x, compute_dtype)


def _unit_step(params: MinLSTMParams, carry: MinLSTMCarry, gates_BG: Array) -> MinLSTMCarry:
    f_BH, i_BH, n_BH = jnp.split(gates_BG, 3, axis=-1)
    f_BH = _share(f_BH, i_BH)
    return MinLSTMCarry(f_BH * carry.h + (1 - f_BH) * n_BH)


def _share(f: Array, i: Array) -> Array:
    """sigmoid(f) / (sigmoid(f) + sigmoid(i)), of whatever numbers.

    By 1 / sigmoid(x) = exp(-low) (exp(low) + exp(low - x)), where low = min(x, -20): smooth where
    gates are, unlike forms by min(x, 0) or softplus, of which some second derivatives are wrong at
    0. Beyond 80 the square of the exponential would have no gradient.
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
    """Draws the weights of a minLSTM; see `init_mingru` for the arguments.

    `"keras"` and `"tf1"` start the forget gate's bias at 1.

    Examples:
        >>> lstm_jax.init_minlstm(jax.random.key(0), input_size=3, hidden_size=4).b.shape
        (12,)
    """
    w_x, b = init_inputs(key, input_size, hidden_size, 3, initialisation, dtype)
    if initialisation != "pytorch":
        b = b.at[:hidden_size].set(1)
    return cast_tree(MinLSTMParams(w_x, b), dtype)


MINLSTM = Cell(
    "minlstm", 3, minlstm_step, init_minlstm, MinLSTMParams, MinLSTMCarry, _unit_step, linear=True
)

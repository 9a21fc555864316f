"""The minimal gated unit of Zhou et al. (2016): a GRU whose two gates are one.

Shapes: B batch, D input size, H hidden size, G = 2H gates f, n side by side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, Dot, declared
from lstm_jax.cells.gru import GRUCarry
from lstm_jax.cells.options import take_step
from lstm_jax.initialisation import Initialisation, init_gates
from lstm_jax.precision import ComputeDtype, cast_tree


class MGUParams(NamedTuple):
    """Weights of a minimal gated unit: `w_x [D, 2H]`, `w_h [H, 2H]`, `b [2H]`, `b_hn [H]`.

    The order is f, n. `b_hn` is the bias inside the product with f; None leaves that product out.

    Examples:
        >>> lstm_jax.init_mgu(jax.random.key(0), 3, 4).w_x.shape
        (3, 8)
    """

    w_x: Array
    w_h: Array
    b: Array
    b_hn: Array | None = None


def mgu_step(
    params: MGUParams, carry: GRUCarry, x: Array, *, compute_dtype: ComputeDtype | None = None
) -> tuple[GRUCarry, Array]:
    """Run one step of a minimal gated unit, in the form of Flax's `MGUCell`.

        f = sigmoid(x w_xf + h w_hf + b_f)
        n = tanh(x w_xn + b_n + f (h w_hn + b_hn))      `b_hn` None: tanh(x w_xn + b_n + h w_hn)
        h' = (1 - f) n + f h

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Zhou et al., arXiv:1603.09420, who multiply h by f before the product, and have f and 1 - f
        the other way round in h'.

    Examples:
        >>> params = lstm_jax.init_mgu(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.mgu_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(MGU, params, carry, x, compute_dtype)


def _mgu(params: MGUParams, carry: GRUCarry, gates_BG: Array, dot: Dot) -> GRUCarry:
    f_BH, n_BH = jnp.split(gates_BG, 2, axis=-1)
    f_from_h_BH, n_from_h_BH = jnp.split(dot(carry.h, params.w_h), 2, axis=-1)
    f_BH = jax.nn.sigmoid(f_BH + f_from_h_BH)
    if params.b_hn is not None:
        n_from_h_BH = f_BH * (n_from_h_BH + params.b_hn[None])
    return GRUCarry((1 - f_BH) * jnp.tanh(n_BH + n_from_h_BH) + f_BH * carry.h)


def init_mgu(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> MGUParams:
    """Draw the weights of a minimal gated unit; see `init_lstm` for arguments and errors.

    With `"keras"` and `"tf1"` biases are zeros, but 1 for f.

    Examples:
        >>> lstm_jax.init_mgu(jax.random.key(0), input_size=3, hidden_size=4).b_hn.shape
        (4,)
    """
    w_x, w_h, b, b_h = init_gates(key, input_size, hidden_size, 2, initialisation, dtype)
    b = b.at[:hidden_size].add(b_h[:hidden_size] if initialisation == "pytorch" else 1)
    return cast_tree(MGUParams(w_x, w_h, b, b_h[hidden_size:]), dtype)


MGU = declared(Cell("mgu", 2, mgu_step, init_mgu, MGUParams, GRUCarry, gates_step=_mgu))

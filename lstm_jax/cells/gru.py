"""The GRU, with its reset gate applied after or before the recurrent product.

Shapes: B batch, D input size, H hidden size, G = 3H: gates r, z, n concatenated.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from lstm_jax.cells.base import Cell, declared
from lstm_jax.cells.options import StepOptions, function_of, scaled, take_step
from lstm_jax.initialisation import Initialisation, init_gates, tf1_kernel
from lstm_jax.precision import ComputeDtype, cast_tree

GRUReset = Literal["after", "before"]


class GRUParams(NamedTuple):
    """Weights of a GRU: `w_x [D, 3H]`, `w_h [H, 3H]`, `b [3H]`, `b_hn [H]`; gate order r, z, n.

    `b_hn` is the bias inside the reset product; None applies the reset before the recurrent
    product. Without biases `b` and `b_hn` are None, and the reset is applied after the product, in
    `GRUBeforeParams` before it.

    Examples:
        >>> lstm_jax.init_gru(jax.random.key(0), 3, 4, reset="before").b_hn is None
        True
    """

    w_x: Array
    w_h: Array
    b: Array | None
    b_hn: Array | None

    @property
    def resets_before(self) -> bool:
        """Whether the reset gate works before the recurrent product."""
        return self.b is not None and self.b_hn is None


class GRUBeforeParams(GRUParams):
    """Weights of a GRU without biases, whose reset gate works before the recurrent product.

    Examples:
        >>> init = lstm_jax.init_gru(jax.random.key(0), 3, 4, reset="before", use_bias=False)
        >>> type(init).__name__, init.b
        ('GRUBeforeParams', None)
    """

    __slots__ = ()
    resets_before = True


class GRUCarry(NamedTuple):
    """State of a GRU: `h [B, H]`.

    Examples:
        >>> lstm_jax.GRUCarry(h=jnp.zeros((2, 4))).h.shape
        (2, 4)
    """

    h: Array


def gru_step(
    params: GRUParams,
    carry: GRUCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
    **options: Unpack[StepOptions],
) -> tuple[GRUCarry, Array]:
    """One step of a GRU, in PyTorch's gate order r, z, n.

        r, z = sigmoid(x w_xr + h w_hr + b_r), sigmoid(x w_xz + h w_hz + b_z)
        n = tanh(x w_xn + b_n + r (h w_hn + b_hn))      with `b_hn`: reset after the product
        n = tanh(x w_xn + b_n + (r h) w_hn)             `b_hn` None: reset before the product
        h' = (1 - z) n + z h

    See `lstm_step` for arguments, results and errors; the carry has `h [B, H]` only.

    References:
        Cho et al., arXiv:1406.1078 (reset before); cuDNN, PyTorch and Keras (reset after).

    Examples:
        >>> params = lstm_jax.init_gru(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.gru_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    return take_step(GRU, params, carry, x, compute_dtype, options)


def _gru(
    params: GRUParams,
    carry: GRUCarry,
    gates_BG: Array,
    dot: Any,
    *,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    state_scale: Array | None = None,
    candidate_scale: Array | None = None,
) -> GRUCarry:
    tanh = function_of("activation", activation)
    sigmoid = function_of("recurrent_activation", recurrent_activation)
    hidden_size, read_BH = params.w_h.shape[0], scaled(carry.h, state_scale)
    parts = partial(jnp.split, indices_or_sections=[2 * hidden_size], axis=-1)
    x_rz_BG, x_n_BH = parts(gates_BG)
    if params.b_hn is None:
        w_rz, w_n = parts(params.w_h)
        h_rz_BG = dot(read_BH, w_rz)
    else:
        h_rz_BG, h_n_BH = parts(dot(read_BH, params.w_h))
    r_BH, z_BH = jnp.split(sigmoid(x_rz_BG + h_rz_BG), 2, axis=-1)
    if params.b_hn is None:
        h_n_BH = dot(r_BH * read_BH, w_n)
    else:
        h_n_BH = r_BH * (h_n_BH + params.b_hn[None])
    n_BH = scaled(tanh(x_n_BH + h_n_BH), candidate_scale)
    return GRUCarry((1 - z_BH) * n_BH + z_BH * carry.h)


def init_gru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    reset: GRUReset = "after",
    use_bias: bool = True,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> GRUParams:
    """Draw the weights of a GRU; see `init_lstm` for the other arguments and the errors.

    `reset` says whether the reset gate is applied "after" or "before" the recurrent product.
    `initialisation="tf1"` draws two kernels as TF1 does, one for the gates and one for the
    candidate, and sets the gates' biases to 1; `"keras"` sets all biases to zero.

    Examples:
        >>> lstm_jax.init_gru(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 12)
    """
    if reset not in get_args(GRUReset):
        raise ValueError(f"reset is {reset!r}; choose 'after' or 'before'")
    w_x, w_h, b, b_h = init_gates(key, input_size, hidden_size, 3, initialisation, dtype)
    if initialisation == "tf1":
        keys = random.split(key)
        gates_x, gates_h = tf1_kernel(keys[0], input_size, hidden_size, 2 * hidden_size, dtype)
        candidate_x, candidate_h = tf1_kernel(keys[1], input_size, hidden_size, hidden_size, dtype)
        w_x = jnp.concatenate([gates_x, candidate_x], axis=1)
        w_h = jnp.concatenate([gates_h, candidate_h], axis=1)
        b = b.at[: 2 * hidden_size].set(1)
    if not use_bias:
        kind = GRUBeforeParams if reset == "before" else GRUParams
        return cast_tree(kind(w_x, w_h, None, None), dtype)
    if reset == "before":
        return cast_tree(GRUParams(w_x, w_h, b + b_h, None), dtype)
    inside = slice(2 * hidden_size, None)
    params = GRUParams(w_x, w_h, b + b_h.at[inside].set(0), b_h[inside])
    return cast_tree(params, dtype)


GRU = declared(Cell("gru", 3, gru_step, init_gru, GRUParams, GRUCarry, options_step=_gru))

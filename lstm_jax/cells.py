"""One step of each recurrent cell: parameters, carry, step function, and what they must fit.

Shapes: B batch, D input size, H hidden size, G = 4H, 3H or H gates side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.nn import initializers
from jax.typing import DTypeLike

from lstm_jax.checks import check_input, require_array
from lstm_jax.initialisation import Initialisation, init_gates, tf1_kernel, uniform
from lstm_jax.precision import ComputeDtype, Products, cast_tree, draw_dtype, products

CellName = Literal["rnn", "lstm", "gru"]
GRUReset = Literal["after", "before"]


class RNNParams(NamedTuple):
    """Weights of a tanh cell: `w_x [D, H]`, `w_h [H, H]`, `b [H]`.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), 3, 4).w_h.shape
        (4, 4)
    """

    w_x: Array
    w_h: Array
    b: Array


class LSTMParams(NamedTuple):
    """Weights of an LSTM: `w_x [D, 4H]`, `w_h [H, 4H]`, `b [4H]`; gate order i, f, g, o.

    With a projection `w_hr [H, P]` the hidden state has size P, and `w_h` is `[P, 4H]`.

    Examples:
        >>> lstm_jax.init_lstm(jax.random.key(0), 3, 4).w_x.shape
        (3, 16)
    """

    w_x: Array
    w_h: Array
    b: Array
    w_hr: Array | None = None


class GRUParams(NamedTuple):
    """Weights of a GRU: `w_x [D, 3H]`, `w_h [H, 3H]`, `b [3H]`, `b_hn [H]`; order r, z, n.

    `b_hn` is the bias inside the reset product; None chooses the form that applies the reset
    gate before the recurrent product.

    Examples:
        >>> lstm_jax.init_gru(jax.random.key(0), 3, 4, reset="before").b_hn is None
        True
    """

    w_x: Array
    w_h: Array
    b: Array
    b_hn: Array | None


class RNNCarry(NamedTuple):
    """State of a tanh cell: `h [B, H]`.

    Examples:
        >>> lstm_jax.RNNCarry(h=jnp.zeros((2, 4)))._fields
        ('h',)
    """

    h: Array


class LSTMCarry(NamedTuple):
    """State of an LSTM: `h [B, H]`, with a projection `[B, P]`, and the cell `c [B, H]`.

    Examples:
        >>> lstm_jax.LSTMCarry(h=jnp.zeros((2, 4)), c=jnp.ones((2, 4))).c.shape
        (2, 4)
    """

    h: Array
    c: Array


class GRUCarry(NamedTuple):
    """State of a GRU: `h [B, H]`.

    Examples:
        >>> lstm_jax.GRUCarry(h=jnp.zeros((2, 4))).h.shape
        (2, 4)
    """

    h: Array


Params = RNNParams | LSTMParams | GRUParams


def rnn_step(
    params: RNNParams,
    carry: RNNCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[RNNCarry, Array]:
    """One step of the tanh cell of Elman (1990): `h' = tanh(x w_x + h w_h + b)`.

    Args:
        params: weights.
        carry: `h [B, H]`.
        x: input `[B, D]`, or integers `[B]` that stand for one-hot rows of size D.
        compute_dtype: see `lstm_jax.precision.products`.

    Returns:
        The new carry, and its `h` `[B, H]` as output.

    Examples:
        >>> params = lstm_jax.init_rnn(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.rnn_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    _check_step("rnn", params, carry, x)
    policy = products(compute_dtype, params.w_h.dtype)
    h_BH = jnp.tanh(_gates(policy, params, x) + policy.dot(carry.h, params.w_h))
    return RNNCarry(h_BH), h_BH


def lstm_step(
    params: LSTMParams,
    carry: LSTMCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[LSTMCarry, Array]:
    """One step of an LSTM, in PyTorch's and Keras's gate order i, f, g, o.

        i, f, g, o = x w_x + h w_h + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c')                with a projection: (sigmoid(o) tanh(c')) w_hr

    Args:
        params: weights.
        carry: `h [B, H]` and `c [B, H]`; with a projection `h [B, P]`.
        x: input `[B, D]`, or integers `[B]` that stand for one-hot rows of size D.
        compute_dtype: see `lstm_jax.precision.products`.

    Returns:
        The new carry, and its `h` `[B, H]` as output.

    References:
        Hochreiter and Schmidhuber (1997); forget gates: Gers et al. (2000); projection: Sak et
        al., arXiv:1402.1128.

    Examples:
        >>> params = lstm_jax.init_lstm(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.lstm_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> carry.c.shape, h.shape
        ((2, 4), (2, 4))
    """
    _check_step("lstm", params, carry, x)
    policy = products(compute_dtype, params.w_h.dtype)
    gates_BG = _gates(policy, params, x) + policy.dot(carry.h, params.w_h)
    i_BH, f_BH, g_BH, o_BH = jnp.split(gates_BG, 4, axis=-1)
    c_BH = jax.nn.sigmoid(f_BH) * carry.c + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
    h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH)
    h_BP = h_BH if params.w_hr is None else policy.dot(h_BH, params.w_hr)
    return LSTMCarry(h_BP, c_BH), h_BP


def gru_step(
    params: GRUParams,
    carry: GRUCarry,
    x: Array,
    *,
    compute_dtype: ComputeDtype | None = None,
) -> tuple[GRUCarry, Array]:
    """One step of a GRU, in PyTorch's gate order r, z, n.

        r, z = sigmoid(x w_xr + h w_hr + b_r), sigmoid(x w_xz + h w_hz + b_z)
        n = tanh(x w_xn + b_n + r (h w_hn + b_hn))      with `b_hn`: reset after the product
        n = tanh(x w_xn + b_n + (r h) w_hn)             `b_hn` None: reset before it
        h' = (1 - z) n + z h

    Args:
        params: weights; `b_hn` chooses the form.
        carry: `h [B, H]`.
        x: input `[B, D]`, or integers `[B]` that stand for one-hot rows of size D.
        compute_dtype: see `lstm_jax.precision.products`.

    Returns:
        The new carry, and its `h` `[B, H]` as output.

    References:
        Cho et al., arXiv:1406.1078 (reset before); cuDNN, PyTorch and Keras (reset after).

    Examples:
        >>> params = lstm_jax.init_gru(jax.random.key(0), 3, 4)
        >>> carry, h = lstm_jax.gru_step(params, lstm_jax.zero_carry(params, 2), jnp.ones((2, 3)))
        >>> h.shape
        (2, 4)
    """
    _check_step("gru", params, carry, x)
    policy = products(compute_dtype, params.w_h.dtype)
    hidden_size = params.w_h.shape[0]
    gates_BG = _gates(policy, params, x)
    r_z_BG = gates_BG[..., : 2 * hidden_size]
    w_rz, w_n = jnp.split(params.w_h, [2 * hidden_size], axis=1)
    r_BH, z_BH = jnp.split(jax.nn.sigmoid(r_z_BG + policy.dot(carry.h, w_rz)), 2, axis=-1)
    if params.b_hn is None:
        from_h_BH = policy.dot(r_BH * carry.h, w_n)
    else:
        from_h_BH = r_BH * (policy.dot(carry.h, w_n) + params.b_hn[None])
    n_BH = jnp.tanh(gates_BG[..., 2 * hidden_size :] + from_h_BH)
    h_BH = (1 - z_BH) * n_BH + z_BH * carry.h
    return GRUCarry(h_BH), h_BH


def look_up(table: Array, ids: Array) -> Array:
    """The table's rows at these ids; an id below or above the table is read as the nearest row."""
    rows: Array = table.at[ids].get(mode="clip", wrap_negative_indices=False)
    return rows


def _gates(policy: Products, params: Params, x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.integer):
        rows_BG = look_up(params.w_x, x)
        return (rows_BG + params.b[None]).astype(policy.accumulate)
    return policy.dot(x, params.w_x) + params.b[None]


def init_rnn(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> RNNParams:
    """Draws the weights of a tanh cell; see `init_lstm` for the arguments.

    Examples:
        >>> lstm_jax.init_rnn(jax.random.key(0), input_size=3, hidden_size=4).w_x.shape
        (3, 4)
    """
    w_x, w_h, b, _ = init_gates(key, input_size, hidden_size, 1, initialisation, dtype)
    return cast_tree(RNNParams(w_x, w_h, b), dtype)


def init_lstm(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    projection_size: int | None = None,
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> LSTMParams:
    """Draws the weights of an LSTM.

    Args:
        key: a typed PRNG key.
        input_size: D.
        hidden_size: H.
        projection_size: P; None for a hidden state that is not projected.
        initialisation: `"pytorch"`: every weight and both of PyTorch's biases (here their sum)
            uniform in +-1/sqrt(H); `"keras"`: Glorot uniform `w_x`, orthogonal `w_h`, zero
            biases but 1 for the forget gate; `"tf1"`: one Glorot uniform kernel over input and
            hidden state together, zero biases but 1 for the forget gate. A projection is
            uniform in +-1/sqrt(H), with the other two Glorot uniform.
        dtype: of the parameters; those narrower than float32 are drawn in float32 and cast.

    Raises:
        ValueError: a size that is no integer or below 1, or an unknown name.

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
    if projection_size is None:
        return cast_tree(LSTMParams(w_x, w_h, b), dtype)
    draw: Any = initializers.glorot_uniform()
    if initialisation == "pytorch":
        draw = uniform(1 / math.sqrt(hidden_size), draw_dtype(dtype))
    w_hr = draw(random.fold_in(key, 4), (hidden_size, projection_size))
    return cast_tree(LSTMParams(w_x, w_h, b, w_hr), dtype)


def init_gru(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    reset: GRUReset = "after",
    initialisation: Initialisation = "pytorch",
    dtype: DTypeLike = jnp.float32,
) -> GRUParams:
    """Draws the weights of a GRU; see `init_lstm` for the other arguments.

    Args:
        key: a typed PRNG key.
        input_size: D.
        hidden_size: H.
        reset: whether the reset gate works `"after"` the recurrent product or `"before"` it.
        initialisation: as in `init_lstm`; `"tf1"` draws gates and candidate as the two kernels
            they are there, and starts the gates' biases at 1.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size that is no integer or below 1, or an unknown name.

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
    if reset == "before":
        return cast_tree(GRUParams(w_x, w_h, b + b_h, None), dtype)
    inside = slice(2 * hidden_size, None)
    params = GRUParams(w_x, w_h, b + b_h.at[inside].set(0), b_h[inside])
    return cast_tree(params, dtype)


class Cell(NamedTuple):
    """What a layer has to know of a cell."""

    name: CellName
    gates: int
    step: Callable[..., tuple[Any, Array]]
    init: Callable[..., Any]
    params: type
    carry: type


_CELLS = (
    Cell("rnn", 1, rnn_step, init_rnn, RNNParams, RNNCarry),
    Cell("lstm", 4, lstm_step, init_lstm, LSTMParams, LSTMCarry),
    Cell("gru", 3, gru_step, init_gru, GRUParams, GRUCarry),
)


def cell_named(name: str) -> Cell:
    """The cell of that name; raises ValueError where there is none."""
    for cell in _CELLS:
        if cell.name == name:
            return cell
    raise ValueError(f"cell is {name!r}; choose one of {', '.join(c.name for c in _CELLS)}")


def cell_of(params: Params) -> Cell:
    """The cell that these parameters belong to.

    Raises:
        TypeError: they belong to none.
    """
    for cell in _CELLS:
        if isinstance(params, cell.params):
            return cell
    raise TypeError(f"expected RNNParams, LSTMParams or GRUParams, got {type(params).__name__}")


def require_cell(params: Any, name: CellName, suffix: str = "") -> None:
    """Raises TypeError where the parameters are not what the function of this cell takes."""
    found, wanted = cell_of(params), cell_named(name)
    if found is not wanted:
        raise TypeError(
            f"{name}{suffix} takes {wanted.params.__name__}, and these are "
            f"{found.params.__name__}; use {found.name}{suffix}"
        )


def check_carry(params: Params, carry: Any, batch_size: int) -> None:
    """Raises TypeError or ValueError where a carry does not fit the parameters."""
    expected: Any = cell_of(params).carry
    if not isinstance(carry, expected):
        raise ValueError(
            f"carry is {type(carry).__name__}; {type(params).__name__} need {expected.__name__}"
        )
    shapes = carry_shapes(params, batch_size)
    for name, array, shape in zip(carry._fields, carry, shapes, strict=True):
        require_array(f"carry.{name}", array)
        if array.shape != shape:
            raise ValueError(f"carry.{name} has shape {array.shape}; expected {shape}")


def _check_step(name: CellName, params: Params, carry: Any, x: Array) -> None:
    require_cell(params, name, "_step")
    check_input("x", x, "B", params.w_x.shape[0])
    check_carry(params, carry, x.shape[0])


def zero_carry(params: Params, batch_size: int) -> Any:
    """The carry of zeros that starts a sequence, in the accumulator's dtype; takes no key.

    Examples:
        >>> lstm_jax.zero_carry(lstm_jax.init_gru(jax.random.key(0), 3, 4), batch_size=2).h.shape
        (2, 4)
    """
    dtype = jnp.promote_types(params.w_h.dtype, jnp.float32)
    # A buffer for each: one shared by h and c could not be donated.
    zeros = [jnp.zeros(shape, dtype) for shape in carry_shapes(params, batch_size)]
    return cell_of(params).carry(*zeros)


def carry_shapes(params: Params, batch_size: int) -> tuple[tuple[int, int], ...]:
    """The shapes of h and, where there is one, c."""
    cell = cell_of(params)
    sizes = params.w_h.shape[0], params.w_h.shape[1] // cell.gates
    return tuple((batch_size, size) for size in sizes[: len(cell.carry._fields)])  # type: ignore[attr-defined]

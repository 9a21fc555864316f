"""Layers of cells without a kernel.

Those of `mingru`, `minlstm`, `diag_gru` and `diag_lstm` can compute all time steps at once, as
their units are independent. The others are a plain scan over time, differentiated by JAX.

Shapes: T time, B batch, D input size, H hidden size.
"""

from typing import Any, Literal, Unpack, overload

from jax import Array

from lstm_jax import cells
from lstm_jax.kernels.solver import SolverInfo, by_loop
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


def mingru(
    params: cells.MinGRUParams,
    carry: cells.MinGRUCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.MinGRUCarry, Array]:
    """A minGRU layer over time: `mingru_step` at each time step. Otherwise like `lstm`.

    The step is linear in the state, so `backend="parallel"` takes one associative scan each way.

    Examples:
        >>> params = lstm_jax.init_mingru(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.mingru(params, None, jnp.ones((10, 2, 3)), backend="parallel")
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_of(cells.MINGRU, params, carry, xs, options)[:2]


def minlstm(
    params: cells.MinLSTMParams,
    carry: cells.MinLSTMCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.MinLSTMCarry, Array]:
    """A minLSTM layer over time: `minlstm_step` at each time step. Otherwise like `mingru`.

    Examples:
        >>> params = lstm_jax.init_minlstm(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.minlstm(params, None, jnp.ones((10, 2, 3)), backend="parallel")
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_of(cells.MINLSTM, params, carry, xs, options)[:2]


@overload
def diag_gru(
    params: cells.DiagGRUParams,
    carry: cells.DiagGRUCarry | None,
    xs: Array,
    *,
    return_info: Literal[False] = False,
    **options: Unpack[LayerOptions],
) -> tuple[cells.DiagGRUCarry, Array]: ...


@overload
def diag_gru(
    params: cells.DiagGRUParams,
    carry: cells.DiagGRUCarry | None,
    xs: Array,
    *,
    return_info: Literal[True],
    **options: Unpack[LayerOptions],
) -> tuple[cells.DiagGRUCarry, Array, SolverInfo]: ...


def diag_gru(
    params: cells.DiagGRUParams,
    carry: cells.DiagGRUCarry | None,
    xs: Array,
    *,
    return_info: bool = False,
    **options: Unpack[LayerOptions],
) -> Any:
    """A diagonal GRU layer over time: `diag_gru_step` at each time step. Otherwise like `lstm`.

    `backend="parallel"` solves for all time steps at once by Newton's method; each iteration is one
    associative scan, as is the backward pass. It stops as `parallel` does by default: in float32
    once all corrections are at most 3e-4, or after 12 iterations, when a loop over time computes
    the result instead.

    With `remat`, chunks of that many time steps are solved one by one. `return_info` adds a
    `SolverInfo` to the carry and hidden states `[T, B, H]`: of chunks, it has the most iterations,
    the largest residual, and whether any took the loop.

    Examples:
        >>> params = lstm_jax.init_diag_gru(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys, info = lstm_jax.diag_gru(
        ...     params, None, jnp.ones((10, 2, 3)), backend="parallel", return_info=True
        ... )
        >>> ys.shape, bool(info.sequential)
        ((10, 2, 4), False)
    """
    carry, ys, info = layer_of(cells.DIAG_GRU, params, carry, xs, options)
    return (carry, ys, info or by_loop(ys.dtype)) if return_info else (carry, ys)


@overload
def diag_lstm(
    params: cells.DiagLSTMParams,
    carry: cells.DiagLSTMCarry | None,
    xs: Array,
    *,
    return_info: Literal[False] = False,
    **options: Unpack[LayerOptions],
) -> tuple[cells.DiagLSTMCarry, Array]: ...


@overload
def diag_lstm(
    params: cells.DiagLSTMParams,
    carry: cells.DiagLSTMCarry | None,
    xs: Array,
    *,
    return_info: Literal[True],
    **options: Unpack[LayerOptions],
) -> tuple[cells.DiagLSTMCarry, Array, SolverInfo]: ...


def diag_lstm(
    params: cells.DiagLSTMParams,
    carry: cells.DiagLSTMCarry | None,
    xs: Array,
    *,
    return_info: bool = False,
    **options: Unpack[LayerOptions],
) -> Any:
    """A diagonal LSTM layer over time: `diag_lstm_step` at each step. Otherwise like `diag_gru`.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.diag_lstm(params, None, jnp.ones((10, 2, 3)), backend="parallel")
        >>> carry.c.shape, ys.shape
        ((2, 4), (10, 2, 4))
    """
    carry, ys, info = layer_of(cells.DIAG_LSTM, params, carry, xs, options)
    return (carry, ys, info or by_loop(ys.dtype)) if return_info else (carry, ys)

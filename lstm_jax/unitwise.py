"""Layers of cells whose units act each on its own, so that all times can go at once.

Shapes: T time, B batch, D input size, H hidden size.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from jax import Array

from lstm_jax import cells
from lstm_jax.kernels.solver import SolverInfo, by_loop
from lstm_jax.recurrence import LayerOptions, layer_of


def mingru(
    params: cells.MinGRUParams,
    carry: cells.MinGRUCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.MinGRUCarry, Array]:
    """A layer of minGRUs over time, `mingru_step` at each; all else as for `lstm`.

    The step is linear in the state, so `backend="parallel"` has all times by one associative scan,
    forward and backward.

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
    """A layer of minLSTMs over time, `minlstm_step` at each; all else as for `mingru`.

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
    """A layer of diagonal GRUs over time, `diag_gru_step` at each; all else as for `lstm`.

    `backend="parallel"` solves the equations of all times at once by Newton's method, each
    iteration of which is one associative scan, and so is the backward pass. It ends when a
    correction is at most the square root of the dtype's precision, 3e-4 in float32, relative to a
    state above 1; it leaves an error of about its square. Where 12 iterations don't get there, a
    loop over time gives the result, in the same program.

    Args:
        params: weights, from `init_diag_gru`.
        carry: initial carry, `h [B, H]`; None starts from zeros.
        xs: inputs `[T, B, D]`, or integers `[T, B]`.
        return_info: return how the states were found, too.
        **options: as for `lstm`. With `remat`, chunks of so many times are solved one after the
            other, each by itself.

    Returns:
        The final carry, the hidden states `[T, B, H]`, and if asked for a `SolverInfo`; of chunks
        it has the most iterations, the largest residual, and whether any went through the loop.

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
    """A layer of diagonal LSTMs over time, `diag_lstm_step` at each; all else as for `diag_gru`.

    Examples:
        >>> params = lstm_jax.init_diag_lstm(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.diag_lstm(params, None, jnp.ones((10, 2, 3)), backend="parallel")
        >>> carry.c.shape, ys.shape
        ((2, 4), (10, 2, 4))
    """
    carry, ys, info = layer_of(cells.DIAG_LSTM, params, carry, xs, options)
    return (carry, ys, info or by_loop(ys.dtype)) if return_info else (carry, ys)

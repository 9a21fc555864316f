"""What `nnx.RNN` and Linen's `nn.RNN` do around a cell, for a whole stack of the pure core.

Shapes: T time, B batch (any number of axes), D input size, H hidden size; outputs are `[..., 2H]`
where bidirectional.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from lstm_jax.cells import cell_named
from lstm_jax.stack import Directions, StackConfig, run_stack


def run_sequences(
    config: StackConfig,
    layers: tuple[Any, ...],
    inputs: Array,
    *,
    initial_carry: Any,
    seq_lengths: Array | None,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
) -> tuple[Any, Array]:
    """Runs the stack over sequences that begin at time 0 and may be padded behind.

    Args:
        config: the stack's shape.
        layers: its parameters.
        inputs: `[B, T, D]`, `[T, B, D]` where time-major; or integers without the last axis, which
            stand for one-hot rows.
        initial_carry: as Flax's cell has it: `(c, h)` of an LSTM, `h` of the others; a pair of
            these where bidirectional, and of several layers a tuple of one entry a layer. None
            starts from zeros, and draws nothing. The core's own carries are taken too.
        seq_lengths: integers `[B]`, how many steps of each sequence are real; None for all.
        time_major: whether time is the first axis of inputs and outputs, or comes after the batch.
        reverse: run over each sequence's real steps from the last to the first.
        keep_order: where reversed, give outputs in the order of the inputs; else in the order in
            which they came about. Padding stays behind either way.

    Returns:
        The carry after each sequence's last real step, in Flax's form, and the outputs, zeros at
        padding.

    Raises:
        ValueError: shapes or dtypes that don't fit.
    """
    is_dense = not jnp.issubdtype(inputs.dtype, jnp.integer)
    if inputs.ndim < 1 + is_dense:
        order = "T, ..." if time_major else "..., T"
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}; expected [{order}, D], or "
            f"integers [{order}]"
        )
    axes = inputs.ndim - 1 - is_dense
    xs = jnp.moveaxis(inputs, 0 if time_major else axes, 0)
    batch = xs.shape[1 : 1 + axes]
    xs = xs.reshape(xs.shape[0], math.prod(batch), *xs.shape[1 + axes :])
    lengths_B = _flat_lengths(seq_lengths, batch)
    mask = None if lengths_B is None else jnp.arange(xs.shape[0])[:, None] < lengths_B[None]
    if reverse:
        xs = reverse_real_steps(xs, lengths_B)
    start = None if initial_carry is None else _carry_in(config, initial_carry, batch)
    carry, ys = run_stack(config, layers, start, xs, mask=mask)
    if reverse and keep_order:
        ys = reverse_real_steps(ys, lengths_B)
    ys = ys.reshape(ys.shape[0], *batch, ys.shape[-1])
    return _carry_out(config, carry, batch), ys if time_major else jnp.moveaxis(ys, 0, axes)


def reverse_real_steps(xs: Array, seq_lengths: Array | None) -> Array:
    """`[T, B, ...]` with the first `seq_lengths` `[B]` steps of each sequence turned round."""
    if seq_lengths is None:
        return jnp.flip(xs, axis=0)
    times = jnp.arange(xs.shape[0])[:, None]
    lengths = jnp.minimum(seq_lengths, xs.shape[0])[None]
    sources_TB = jnp.where(times < lengths, lengths - 1 - times, times)
    return xs[sources_TB, jnp.arange(xs.shape[1])[None]]


def _flat_lengths(seq_lengths: Array | None, batch: tuple[int, ...]) -> Array | None:
    if seq_lengths is None:
        return None
    if seq_lengths.shape != batch or not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise ValueError(
            f"seq_lengths are {seq_lengths.dtype} of shape {seq_lengths.shape}; expected integers "
            f"of shape {batch}"
        )
    return seq_lengths.reshape(math.prod(batch))


def _carry_in(config: StackConfig, carry: Any, batch: tuple[int, ...]) -> tuple[Any, ...]:
    """Flax's carry as the stack's, its batch axes made one."""
    cell = cell_named(config.cell)
    shape = (*batch, config.hidden_size)

    def state(given: Any) -> Any:
        parts = given if isinstance(given, tuple | list) else (given,)
        # Flax's order is c, h; that of ours h, c.
        parts = parts if isinstance(given, cell.carry) else parts[::-1]
        arrays = [jnp.asarray(part) for part in parts]
        fields = cell.carry._fields  # type: ignore[attr-defined]
        if [array.shape for array in arrays] != [shape] * len(fields):
            form = "a tuple (c, h), each" if config.cell == "lstm" else "an array h"
            found = " and ".join(str(array.shape) for array in arrays) or "nothing"
            several = f", and {config.layers} layers a tuple of these" if config.layers > 1 else ""
            raise ValueError(
                f"initial_carry has {found} for a layer of {config.cell}; it needs {form} of shape "
                f"{shape}{several}"
            )
        return cell.carry(
            *(array.reshape(math.prod(batch), config.hidden_size) for array in arrays)
        )

    def entry(given: Any) -> Any:
        if not config.bidirectional:
            return state(given)
        return Directions(*map(state, _entries(given, 2, "directions")))

    if config.layers == 1:
        return (entry(carry),)
    return tuple(map(entry, _entries(carry, config.layers, "layers")))


def _entries(given: Any, number: int, what: str) -> tuple[Any, ...]:
    if not isinstance(given, tuple | list) or len(given) != number:
        found = f"a tuple of {len(given)}" if isinstance(given, tuple | list) else "no tuple"
        raise ValueError(
            f"initial_carry is {found} for {number} {what}; expected a tuple of {number}"
        )
    return tuple(given)


def _carry_out(config: StackConfig, carry: tuple[Any, ...], batch: tuple[int, ...]) -> Any:
    """The inverse of `_carry_in`."""

    def state(own: Any) -> Any:
        arrays = tuple(array.reshape(*batch, config.hidden_size) for array in reversed(own))
        return arrays if len(arrays) > 1 else arrays[0]

    entries = tuple(
        tuple(map(state, own)) if isinstance(own, Directions) else state(own) for own in carry
    )
    return entries if config.layers > 1 else entries[0]

"""What `nnx.RNN` and Linen's `nn.RNN` do around a cell, for a whole stack of the pure core.

Shapes: T time, B batch, D input size, H hidden size; outputs are `[..., 2H]` where bidirectional.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from lstm_jax.stack import StackConfig, run_stack


def run_sequences(
    config: StackConfig,
    layers: tuple[Any, ...],
    inputs: Array,
    *,
    initial_carry: tuple[Any, ...] | None,
    seq_lengths: Array | None,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
) -> tuple[tuple[Any, ...], Array]:
    """Runs the stack over sequences that begin at time 0 and may be padded behind.

    Args:
        config: the stack's shape.
        layers: its parameters.
        inputs: `[B, T, D]`, `[T, B, D]` where time-major; or integers without the last axis, which
            stand for one-hot rows.
        initial_carry: one entry a layer; None starts from zeros, and draws nothing.
        seq_lengths: integers `[B]`, how many steps of each sequence are real; None for all.
        time_major: which of the two axes comes first, in inputs and outputs.
        reverse: run over each sequence's real steps from the last to the first.
        keep_order: where reversed, give outputs in the order of the inputs; else in the order in
            which they came about. Padding stays behind either way.

    Returns:
        The carry after each sequence's last real step, and the outputs, zeros at padding.

    Raises:
        ValueError: shapes or dtypes that don't fit.
    """
    _check(layers, inputs, initial_carry, seq_lengths, time_major)
    xs = inputs if time_major else jnp.swapaxes(inputs, 0, 1)
    mask = None if seq_lengths is None else jnp.arange(xs.shape[0])[:, None] < seq_lengths
    if reverse:
        xs = reverse_real_steps(xs, seq_lengths)
    carry, ys = run_stack(config, layers, initial_carry, xs, mask=mask)
    if reverse and keep_order:
        ys = reverse_real_steps(ys, seq_lengths)
    return carry, ys if time_major else jnp.swapaxes(ys, 0, 1)


def reverse_real_steps(xs: Array, seq_lengths: Array | None) -> Array:
    """`[T, B, ...]` with the first `seq_lengths` steps of each sequence turned round."""
    if seq_lengths is None:
        return jnp.flip(xs, axis=0)
    times = jnp.arange(xs.shape[0])[:, None]
    lengths = jnp.minimum(seq_lengths, xs.shape[0])
    sources_TB = jnp.where(times < lengths, lengths - 1 - times, times)
    return xs[sources_TB, jnp.arange(xs.shape[1])]


def _check(
    layers: tuple[Any, ...],
    inputs: Array,
    initial_carry: tuple[Any, ...] | None,
    seq_lengths: Array | None,
    time_major: bool,
) -> None:
    axes = "[T, B" if time_major else "[B, T"
    if inputs.ndim != (2 if jnp.issubdtype(inputs.dtype, jnp.integer) else 3):
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}; expected {axes}, D], or integers "
            f"{axes}]"
        )
    batch_size = inputs.shape[1 if time_major else 0]
    if seq_lengths is not None and (
        seq_lengths.shape != (batch_size,) or not jnp.issubdtype(seq_lengths.dtype, jnp.integer)
    ):
        raise ValueError(
            f"seq_lengths are {seq_lengths.dtype} of shape {seq_lengths.shape}; expected integers "
            f"of shape ({batch_size},)"
        )
    if initial_carry is not None and len(initial_carry) != len(layers):
        raise ValueError(
            f"initial_carry has {len(initial_carry)} entries for {len(layers)} layers; expected a "
            "tuple of one a layer"
        )

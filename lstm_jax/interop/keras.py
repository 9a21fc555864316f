"""Weights to and from Keras's LSTM, GRU, SimpleRNN and Bidirectional, as in `get_weights()`.

A layer's list is kernel `[D, G]`, recurrent kernel `[H, G]` and bias; a `Bidirectional`'s has the
forward layer's, then the backward layer's. The gate order is i, f, c, o as ours, or z, r, h, of
which we swap the first two. The bias is `[G]`. A GRU with `reset_after=True` has `[2, G]`, for the
input and for the hidden state. We keep their sum for r and z, and write it to the input's row, so
that the other row has only the candidate's part (see `arrays`).

Weights do not show a layer's activations: unless they are Keras's defaults, run the layer with the
same names (`lstm_jax.lstm(..., recurrent_activation="hard_sigmoid")`, or fields of `StackConfig`).
A `Bidirectional` must concatenate. Nothing here imports keras: `layer.set_weights(arrays)` takes
the results.

Shapes: D input size, H hidden size, G = 4H, 3H or H gates.
"""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from lstm_jax.cells import DenseParams, GRUParams, GRUReset, cell_of
from lstm_jax.interop import arrays as shared
from lstm_jax.interop.arrays import AnyArray

_CURE = (
    "give layer.get_weights(), and to layers_from_keras [layer.get_weights() for layer in layers]"
)


def layers_from_keras(
    weights: Iterable[Sequence[Any]], *, reset: GRUReset | None = None
) -> tuple[Any, ...]:
    """Convert a stack: `[layer.get_weights() for layer in ...]`, the first layer first.

    Raises:
        ValueError: as for `layer_from_keras`, or a layer does not fit the one below.

    Examples:
        >>> from lstm_jax import interop
        >>> weights = [np.ones((3, 16)), np.ones((4, 16)), np.zeros(16)]  # layer.get_weights()
        >>> layers = interop.layers_from_keras([[w.astype(np.float32) for w in weights]])
        >>> carry, ys = lstm_jax.lstm(layers[0], None, jnp.ones((10, 2, 3)))
    """
    shared.require_kind("the stack", weights, Iterable, _CURE)
    layers = tuple(layer_from_keras(arrays, reset=reset) for arrays in weights)
    shared.require_chain(layers)
    return layers


def layers_to_keras(
    layers: tuple[Any, ...], *, use_bias: bool | None = None
) -> list[list[AnyArray]]:
    """Convert a stack to what each layer's `set_weights` takes; see `layer_to_keras`.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> [array.shape for array in interop.layers_to_keras(layers)[0]]
        [(3, 16), (4, 16), (16,)]
    """
    shared.require_chain(layers)
    return [layer_to_keras(layer, use_bias=use_bias) for layer in layers]


def layer_from_keras(weights: Sequence[Any], *, reset: GRUReset | None = None) -> Any:
    """Convert one layer, a `Bidirectional` to `Directions`.

    Args:
        weights: the layer's `get_weights()`; without biases (`use_bias=False`) ours are None.
        reset: whether a GRU's reset gate is applied `"after"` the recurrent product (Keras's
            default) or `"before"` it; only needed without a bias, whose shape shows it otherwise.

    Raises:
        ValueError: the arrays do not match such a layer.

    Examples:
        >>> from lstm_jax import interop
        >>> weights = [np.ones(shape, np.float32) for shape in ((3, 12), (4, 12), (2, 12))]
        >>> interop.layer_from_keras(weights).b_hn.shape  # reset_after, as Keras's default is
        (4,)
    """
    if reset not in (None, *get_args(GRUReset)):
        raise ValueError(f"reset is {reset!r}; choose 'after' or 'before'")
    shared.require_kind("the layer", weights, Sequence, _CURE)
    match len(weights):
        case 2 | 3:
            return _direction(weights, reset)
        case 4 | 6:
            half = len(weights) // 2
            forward, backward = (_direction(w, reset) for w in (weights[:half], weights[half:]))
            return shared.both_directions(forward, backward, _CURE)
    raise ValueError(
        f"the layer has {len(weights)} arrays; expected 2 or 3 (kernel, recurrent kernel, bias), "
        f"or twice as many for a Bidirectional; {_CURE}"
    )


def layer_to_keras(layer: Any, *, use_bias: bool | None = None) -> list[AnyArray]:
    """Convert one layer to what the `set_weights` of an equivalent Keras layer takes.

    A GRU with a `b_hn` needs `reset_after=True`, any other `reset_after=False`.

    Args:
        layer: parameters, or `Directions` for a `Bidirectional`.
        use_bias: whether the Keras layer has biases; None if this one has.

    Raises:
        ValueError: `use_bias` is False but a bias is not zero, or the layer has a projection.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> len(interop.layer_to_keras(layers[0]))
        3
    """
    shared.require_no_projection(layer, "Keras")
    return [
        array
        for params in shared.directions_of(layer)
        for array in _direction_out(params, use_bias)
    ]


def _direction(weights: Sequence[Any], reset: GRUReset | None) -> Any:
    recurrent = shared.read_array("the recurrent kernel", weights[1], None, None)
    hidden_size, width = recurrent.shape
    cell = shared.cell_of_width("the recurrent kernel", width, hidden_size)
    kernel = shared.read_array("the kernel", weights[0], None, width)
    is_gru = cell.name == "gru"
    exchange = _exchange if is_gru else np.asarray
    kernels = exchange(kernel), exchange(recurrent)
    if len(weights) == 2:
        if is_gru and reset is None:
            raise ValueError(
                'a GRU without bias does not show where its reset gate works; say reset="after" '
                '(Keras\'s default) or "before"'
            )
        params = shared.params_without_bias(cell, *kernels, reset or "after")
        return shared.to_jax("the layer", params)
    has_two = is_gru and np.ndim(weights[2]) == 2
    shown = "after" if has_two else "before"
    if is_gru and reset not in (None, shown):
        raise ValueError(f"reset is {reset!r}, but the bias is of a GRU that resets {shown}")
    sizes = [2, width] if has_two else [width]
    bias = exchange(shared.read_array("the bias", weights[2], *sizes))
    if has_two:
        params = shared.params_of_two_biases(cell, *kernels, *bias)
    else:
        params = cell.params(*kernels, bias, *[None] * is_gru)
    return shared.to_jax("the layer", params)


def _direction_out(params: DenseParams, use_bias: bool | None) -> list[AnyArray]:
    b_x, b_h = shared.two_biases(params)
    arrays = [shared.to_numpy(params.w_x), shared.to_numpy(params.w_h), b_x]
    if isinstance(params, GRUParams):
        if not params.resets_before:
            arrays[2] = np.stack([b_x, b_h])
        arrays = [_exchange(array) for array in arrays]
    if use_bias or (use_bias is None and params.b is not None):
        return arrays
    shared.require_no_bias(f"the {cell_of(params).name} layer", params)
    return arrays[:2]


def _exchange(array: AnyArray) -> AnyArray:
    """Swap z, r, h and r, z, n."""
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)

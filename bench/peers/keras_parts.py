"""Keras on JAX, whose backend is chosen before it is imported; layers are called statelessly."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras as keras
import numpy as np
from jax import Array

from bench.shapes import DType
from lstm_jax.cells import CellName
from lstm_jax.interop.keras import layer_to_keras


def require_jax() -> None:
    """Raises ValueError where Keras was imported on another backend."""
    if keras.backend.backend() != "jax":
        raise ValueError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax")


def make_recurrent(
    cell: CellName, dtype: DType, inputs: int, size: int, *, return_state: bool
) -> Any:
    """A layer whose inputs are batch-major; its own weights are not used.

    Not of the policy "mixed_bfloat16", under which its GRU mixes dtypes in the loop and fails: the
    weights are cast before the call.
    """
    kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
    layer = kind(
        size,
        return_sequences=True,
        return_state=return_state,
        recurrent_initializer="zeros",  # its own cannot be drawn in bfloat16
        dtype=dtype,
    )
    layer.build((None, None, inputs))
    return layer


def recurrent_weights(params: Any) -> list[Array]:
    """Our layer's weights in Keras's form."""
    return [jnp.array(array) for array in layer_to_keras(params)]


def cast(tree: Any, dtype: str) -> Any:
    """Weights and carry in the dtype of the products."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def in_our_order(array: Any) -> Any:
    """A GRU's gates from z, r, h to r, z, n."""
    first, second, third = np.split(np.asarray(array), 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)

"""Weight initialisation as in PyTorch, Keras and TF1.

Shapes: D input size, H hidden size.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import Array, random
from jax.nn import initializers
from jax.typing import DTypeLike

from lstm_jax.precision import draw_dtype

Initialisation = Literal["pytorch", "keras", "tf1"]


def init_gates(
    key: Array,
    input_size: int,
    hidden_size: int,
    gates: int,
    initialisation: Initialisation,
    dtype: DTypeLike,
    projection_size: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """`w_x`, `w_h`, and the biases of input and hidden state (separate in GRU and MGU)."""
    read_size = hidden_size if projection_size is None else projection_size
    _check(
        initialisation, input_size=input_size, hidden_size=hidden_size, projection_size=read_size
    )
    width = gates * hidden_size
    dtype = draw_dtype(dtype)
    zero = jnp.zeros(width, dtype)
    key_x, key_h, key_bx, key_bh = random.split(key, 4)
    match initialisation:
        case "pytorch":
            draw = uniform(1 / math.sqrt(hidden_size), dtype)
            b_x, b_h = draw(key_bx, (width,)), draw(key_bh, (width,))
            w_x, w_h = draw(key_x, (input_size, width)), draw(key_h, (read_size, width))
            return (w_x, w_h, b_x, b_h) if gates in (2, 3) else (w_x, w_h, b_x + b_h, zero)
        case "keras":
            w_x = initializers.glorot_uniform()(key_x, (input_size, width), dtype)
            return w_x, initializers.orthogonal()(key_h, (read_size, width), dtype), zero, zero
        case "tf1":
            return *tf1_kernel(key_x, input_size, read_size, width, dtype), zero, zero


def init_inputs(
    key: Array,
    input_size: int,
    hidden_size: int,
    gates: int,
    initialisation: Initialisation,
    dtype: DTypeLike,
) -> tuple[Array, Array]:
    """`w_x` and `b` of a cell whose gates do not read the hidden state."""
    _check(initialisation, input_size=input_size, hidden_size=hidden_size)
    width, dtype = gates * hidden_size, draw_dtype(dtype)
    key_x, key_b = random.split(key)
    match initialisation:
        case "pytorch":
            draw = uniform(1 / math.sqrt(hidden_size), dtype)
            return draw(key_x, (input_size, width)), draw(key_b, (width,))
        case "keras" | "tf1":
            w_x = initializers.glorot_uniform()(key_x, (input_size, width), dtype)
            return w_x, jnp.zeros(width, dtype)


def init_diagonal(key: Array, hidden_size: int, gates: int, dtype: DTypeLike) -> Array:
    """Diagonals of `gates` recurrent matrices, concatenated; uniform in +-1/sqrt(H)."""
    draw = uniform(1 / math.sqrt(hidden_size), draw_dtype(dtype))
    return draw(random.fold_in(key, 3), (gates * hidden_size,))


def init_embedding(
    key: Array, initialisation: Initialisation, shape: tuple[int, int], dtype: DTypeLike
) -> Array:
    """An embedding table, one row per token."""
    match initialisation:
        case "pytorch":
            return random.normal(key, shape, dtype)
        case "keras":
            return random.uniform(key, shape, dtype, -0.05, 0.05)
    return initializers.glorot_uniform()(key, shape, dtype)


def init_affine(
    key: Array, initialisation: Initialisation, inputs: int, outputs: int, dtype: DTypeLike
) -> tuple[Array, Array]:
    """Weights and bias: Glorot uniform and zeros (Keras, TF1), or +-1/sqrt(inputs) (PyTorch)."""
    shape = (inputs, outputs)
    if initialisation != "pytorch":
        return initializers.glorot_uniform()(key, shape, dtype), jnp.zeros(outputs, dtype)
    key_w, key_b = random.split(key)
    draw = uniform(1 / math.sqrt(inputs), dtype)
    return draw(key_w, shape), draw(key_b, (outputs,))


def _check(initialisation: str, **sizes: Any) -> None:
    if initialisation not in (names := get_args(Initialisation)):
        raise ValueError(f"initialisation is {initialisation!r}; choose one of {', '.join(names)}")
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} is {size!r}; it must be an integer, at least 1")


def uniform(bound: float, dtype: DTypeLike) -> Callable[[Array, tuple[int, ...]], Array]:
    """A function that draws uniformly from [-bound, bound)."""
    return lambda key, shape: random.uniform(key, shape, dtype, -bound, bound)


def tf1_kernel(
    key: Array, input_size: int, hidden_size: int, width: int, dtype: DTypeLike
) -> tuple[Array, Array]:
    """`w_x` and `w_h`, cut from one Glorot uniform kernel over input and hidden state."""
    shape = (input_size + hidden_size, width)
    kernel = initializers.glorot_uniform()(key, shape, draw_dtype(dtype))
    return kernel[:input_size], kernel[input_size:]

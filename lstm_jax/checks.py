"""Checks of types and shapes, made before anything is computed.

Shapes: T time, B batch, D input size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_array(name: str, value: Any) -> None:
    """Raise TypeError if the value is not an array."""
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise TypeError(f"{name} is {type(value).__name__}; give an array, as jnp.asarray makes it")


def require_real(name: str, array: Any) -> None:
    """Raise ValueError if the array is complex."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} is {array.dtype}; give real numbers, such as both parts side by side"
        )


def require_count(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless an option is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; give a whole number")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


def require_key(name: str, key: Any, xs: Any = None) -> None:
    """Raise TypeError or ValueError unless it is a typed key, or one per row of `xs [T, B]`."""
    is_array = hasattr(key, "dtype") and hasattr(key, "shape")
    if not (is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        found = f"{key.dtype}{[*key.shape]}, not a typed key" if is_array else type(key).__name__
        raise TypeError(f"{name} is {found}; make it with jax.random.key(seed)")
    rows = getattr(xs, "shape", ())[1:2]
    if key.ndim and key.shape != rows:
        cure = f" for {rows[0]} sequences; give one per sequence, or one" if rows else "; give one"
        raise ValueError(f"{name} holds keys of shape {key.shape}{cure}")


def check_input(name: str, x: Any, axes: str, input_size: int) -> None:
    """Raise TypeError or ValueError unless `x` is `[axes, D]`, or integers `[axes]`."""
    require_array(name, x)
    require_real(name, x)
    rank = len(axes.split(", "))
    if jnp.issubdtype(x.dtype, jnp.integer):
        if x.ndim != rank:
            raise ValueError(
                f"integer {name} of shape {x.shape}; expected [{axes}] token ids, or float features"
            )
    elif x.ndim != rank + 1 or x.shape[-1] != input_size:
        order = ", time first" * (rank > 1)
        raise ValueError(
            f"{name} of shape {x.shape}; expected [{axes}, {input_size}]{order}, as w_x has "
            f"{input_size} rows"
        )


def check_flags(name: str, flags: Any, shape: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError unless `flags` is None or bool of this shape."""
    if flags is None:
        return
    require_array(name, flags)
    if flags.dtype != jnp.bool_ or flags.shape != shape:
        cure = f"; give {name} != 0" * (flags.dtype != jnp.bool_)
        found = f"{name} is {flags.dtype} of shape {flags.shape}"
        raise ValueError(f"{found}; expected bool {shape}{cure}")


def check_targets(targets: Any, tokens: Any) -> None:
    """Raise TypeError or ValueError unless targets are integers with the shape of `tokens`."""
    require_array("tokens", tokens)
    require_array("targets", targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != tokens.shape:
        raise ValueError(
            f"targets is {targets.dtype} of shape {targets.shape}; expected token ids, integers "
            f"of the shape of tokens, {tokens.shape}"
        )

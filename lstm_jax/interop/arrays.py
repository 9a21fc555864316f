"""Arrays on their way in and out: copied, and checked before anything is made of them.

Shapes: D input size, H hidden size, G gates side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from lstm_jax.cells import Cell, CellName, Params, cell_named, cell_of
from lstm_jax.stack import Directions

AnyArray = npt.NDArray[Any]


def read_array(name: str, value: Any, dimensions: int) -> AnyArray:
    """Whatever numpy can read, PyTorch's tensors on any device included.

    Raises:
        ValueError: it is no array of floating-point numbers, or has not so many dimensions.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # PyTorch gives numpy no bfloat16; by way of float32 nothing is lost.
            value = value.float().numpy().astype(jnp.bfloat16)
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is {array.dtype}; expected an array of floating-point weights")
    if array.ndim != dimensions:
        raise ValueError(f"{name} has shape {array.shape}; expected {dimensions} dimensions")
    return array


def require_shape(name: str, array: AnyArray, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the shape is another."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}")


def require_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises ValueError where names are missing or left over; says which."""
    found, expected = set(found), set(expected)
    if missing := sorted(expected - found):
        raise ValueError(f"{what} lacks {', '.join(missing)}; it has {listed(found)}")
    if left_over := found - expected:
        raise ValueError(
            f"{what} has {listed(left_over)}, which nothing here takes; leave that out"
        )


def listed(names: Iterable[str]) -> str:
    """At most six names, for an error."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + rest if names else "nothing"


def cell_of_width(name: str, width: int, hidden_size: int) -> Cell:
    """The cell whose gates side by side are so wide: H an RNN, 3H a GRU, 4H an LSTM.

    Raises:
        ValueError: there is none.
    """
    for cell in map(cell_named, get_args(CellName)):
        if hidden_size and width == cell.gates * hidden_size:
            return cell
    raise ValueError(
        f"{name} is {width} wide for a hidden size of {hidden_size}; expected 1 (RNN), 3 (GRU) or "
        "4 (LSTM) times it"
    )


def to_jax(what: str, tree: Any) -> Any:
    """A copy of every array as JAX's, so that no later change to the source shows through.

    Raises:
        ValueError: an array is float64 and JAX's 64-bit types are off.
    """

    def convert(array: AnyArray) -> jax.Array:
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{what} is {array.dtype}; set jax_enable_x64, or convert it to float32 first"
            )
        return jnp.array(array)

    return jax.tree.map(convert, tree)


def to_numpy(array: Any) -> AnyArray:
    """A copy for other libraries to write to, its rows one after the other in memory."""
    return np.array(array, order="C")


def directions_of(layer: Any) -> tuple[Params, ...]:
    """The parameters of a layer's one or two directions.

    Raises:
        TypeError: something in it is no cell's parameters.
    """
    directions = tuple(layer) if isinstance(layer, Directions) else (layer,)
    for params in directions:
        cell_of(params)
    return directions


def require_chain(layers: tuple[Any, ...]) -> None:
    """Raises ValueError where a layer doesn't take what the one below puts out."""
    for index in range(1, len(layers)):
        puts_out = sum(int(p.w_h.shape[0]) for p in directions_of(layers[index - 1]))
        for params in directions_of(layers[index]):
            if params.w_x.shape[0] != puts_out:
                raise ValueError(
                    f"layer {index} takes inputs of size {params.w_x.shape[0]}, but layer "
                    f"{index - 1} puts out {puts_out}; are these layers of one stack?"
                )


def without_prefix(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with the prefix, which is cut off."""
    return {name[len(prefix) :]: mapping[name] for name in mapping if name.startswith(prefix)}

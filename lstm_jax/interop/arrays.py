"""Conversion of arrays from and to other libraries, with checks.

PyTorch and Keras have one bias for the input and one for the hidden state. If the two are only ever
added, we keep their sum. A GRU with its reset gate after the recurrent product multiplies the
candidate bias of the hidden state by the gate, so that part stays separate:

    b = b_x + b_h for r and z, b_x for n;  b_hn = b_h for n

Shapes: D input size, H hidden size, G size of all gates together.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from lstm_jax import files
from lstm_jax.cells import (
    GRU,
    LSTM,
    RNN,
    Cell,
    DenseParams,
    GRUBeforeParams,
    GRUParams,
    cell_of,
    with_biases,
)
from lstm_jax.stack import Directions, StackConfig

AnyArray = npt.NDArray[Any]

_OTHERS_HAVE = (RNN, LSTM, GRU)


def read_array(name: str, value: Any, *shape: int | None) -> AnyArray:
    """Read floating-point numbers as a numpy array, also from PyTorch tensors on any device.

    Raises ValueError for other dtypes, or another shape; None in `shape` stands for any size.
    """
    array = _of_pytorch(name, value) if hasattr(value, "detach") else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is {array.dtype}; expected an array of floating-point weights")
    if array.ndim != len(shape):
        raise ValueError(f"{name} has shape {array.shape}; expected {len(shape)} dimensions")
    sizes = zip(shape, array.shape, strict=True)
    require_shape(name, array, tuple(own if size is None else size for size, own in sizes))
    return array


def _of_pytorch(name: str, tensor: Any) -> AnyArray:
    try:
        if str(tensor.dtype) == "torch.bfloat16":
            # PyTorch gives numpy no bfloat16; converting by float32 is exact.
            return np.asarray(tensor.detach().cpu().float()).astype(jnp.bfloat16)
        return np.asarray(tensor.detach().cpu())
    except (TypeError, RuntimeError):
        raise ValueError(
            f"{name} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}, which "
            "numpy lacks; save it as a dense one of float32"
        ) from None


def require_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the shape differs."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}")


def require_kind(what: str, value: Any, kind: type, cure: str) -> None:
    """Raise ValueError, which ends with the cure, if a whole object is given for its weights."""
    if not isinstance(value, kind):
        raise ValueError(f"{what} is {type(value).__name__}; {cure}")


def require_names(
    what: str, found: Iterable[str], expected: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Raise ValueError, saying which, if names are missing or unexpected."""
    found, expected = set(found), set(expected)
    if missing := sorted(expected - found):
        raise ValueError(f"{what} lacks {', '.join(missing)}; it has {listed(found)}")
    if left_over := found - expected - set(optional):
        raise ValueError(
            f"{what} has {listed(left_over)}, which nothing here takes; leave that out"
        )


def listed(names: Iterable[str]) -> str:
    """The first of some names in order, for an error message."""
    return files.listed(sorted(map(str, names))) or "nothing"


def without_prefix(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries whose names begin with the prefix, with it removed."""
    return {name[len(prefix) :]: mapping[name] for name in mapping if name.startswith(prefix)}


def cell_of_width(name: str, width: int, hidden_size: int) -> Cell:
    """The cell whose gates together have this width; raises ValueError if there is none."""
    for cell in _OTHERS_HAVE:
        if hidden_size and width == cell.gates * hidden_size:
            return cell
    raise ValueError(
        f"{name} is {width} wide for a hidden size of {hidden_size}; expected 1 (RNN), 3 (GRU) or "
        "4 (LSTM) times it"
    )


def to_jax(what: str, tree: Any) -> Any:
    """Copy every array to JAX; raises ValueError for float64 if JAX does not have it enabled."""

    def convert(array: AnyArray) -> jax.Array:
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise ValueError(
                f"{what} is {array.dtype}; set jax_enable_x64, or convert it to float32 first"
            )
        return jnp.array(array)

    return jax.tree.map(convert, tree)


def to_numpy(array: Any) -> AnyArray:
    """A writable, contiguous copy for other libraries."""
    return np.array(array, order="C")


def directions_of(layer: Any, *more: Cell) -> tuple[DenseParams, ...]:
    """Parameters of each direction.

    Raises ValueError for a cell that is neither in all other frameworks nor one of `more`.
    """
    directions = tuple(layer) if isinstance(layer, Directions) else (layer,)
    for cell in map(cell_of, directions):
        if cell not in (*_OTHERS_HAVE, *more):
            names = ", ".join(each.name for each in (*_OTHERS_HAVE, *more))
            raise ValueError(
                f"a layer's cell is {cell.name}, and only those of {names} can be converted; "
                "keep it in its run folder, or export the compiled model with lstm-jax export"
            )
    return directions


def both_directions(forward: Any, backward: Any, cure: str) -> Directions:
    """One layer; raises ValueError, which ends with the cure, if cells or shapes differ."""
    one, other = (str(jax.tree.map(np.shape, params)) for params in (forward, backward))
    if one != other:
        raise ValueError(f"the two directions of a layer are {one} and {other}; {cure}")
    return Directions(forward, backward)


def require_chain(layers: Any) -> None:
    """Raise ValueError unless these are layers, each of which takes what the one below puts out."""
    is_other = hasattr(layers, "_fields") or not isinstance(layers, tuple | list)
    if is_other or not layers:
        raise ValueError(
            f"the layers are {type(layers).__name__ if is_other else 'none'}; give a tuple of "
            "them: (params,) of one layer, params.layers of a model"
        )
    each = [(input_size(layer), output_size(layer)) for layer in layers]
    for index, ((_, puts_out), (takes, _)) in enumerate(pairwise(each), 1):
        if takes != puts_out:
            raise ValueError(
                f"layer {index} takes inputs of size {takes}, but layer {index - 1} puts out "
                f"{puts_out}; are these layers of one stack?"
            )


def input_size(layer: Any) -> int:
    """D; raises ValueError if the directions differ."""
    first, *others = (int(params.w_x.shape[0]) for params in directions_of(layer))
    if others not in ([], [first]):
        raise ValueError(f"a layer's directions take inputs of sizes {first} and {others[0]}")
    return first


def output_size(layer: Any) -> int:
    """Size of the layer's output: that of the hidden states of its directions together."""
    return sum(int(params.w_h.shape[0]) for params in directions_of(layer))


def require_one_hot(missing: str, input_size: int, tokens: int) -> None:
    """Raise ValueError if the layers' inputs can't be one-hot rows, which need no embedding."""
    if tokens != input_size:
        raise ValueError(
            f"{missing} is missing, and the layers' inputs of size {input_size} are no one-hot "
            f"rows of {tokens} tokens"
        )


def config_of_layers(layers: tuple[Any, ...], cure: str) -> StackConfig:
    """Derive a stack's config from its weights; if layers differ, the error ends with the cure."""
    require_chain(layers)
    each = [params for layer in layers for params in directions_of(layer)]
    befores = {getattr(params, "resets_before", False) for params in each}
    cells = sorted({cell_of(params).name for params in each})
    sizes = sorted({int(params.w_h.shape[1]) // cell_of(params).gates for params in each})
    (projection, *others) = {None if w is None else w.shape[1] for w in map(projection_of, each)}
    if len(cells) > 1 or len(sizes) > 1:
        raise ValueError(f"the layers have hidden sizes {sizes} and cells {cells}; {cure}")
    if others:
        raise ValueError(f"the layers have projections of several sizes; {cure}")
    for what, kinds in (
        ("have two directions", {isinstance(layer, Directions) for layer in layers}),
        ("reset before the product", befores),
        ("have no biases", {params.b is None for params in each}),
    ):
        if len(kinds) > 1:
            raise ValueError(f"some of the layers {what}; {cure}")
    return StackConfig(
        cell=cells[0],  # type: ignore[arg-type]
        layers=len(layers),
        hidden_size=sizes[0],
        projection_size=projection,
        bidirectional=isinstance(layers[0], Directions),
        gru_reset="before" if True in befores else "after",
        use_bias=each[0].b is not None,
    )


def projection_of(params: DenseParams) -> Any:
    """`w_hr [H, P]` of an LSTM with a projection, else None."""
    return getattr(params, "w_hr", None)


def require_no_projection(layer: Any, who: str, *more: Cell) -> None:
    """Raise ValueError if a layer's hidden state is projected."""
    if any(projection_of(params) is not None for params in directions_of(layer, *more)):
        raise ValueError(
            f"the layer has a projection of its hidden state, which {who} lacks; train one "
            "without projection_size"
        )


def params_of_two_biases(
    cell: Cell, w_x: AnyArray, w_h: AnyArray, b_x: AnyArray, b_h: AnyArray
) -> Any:
    """Parameters from `w_x [D, G]`, `w_h [H, G]`, biases `[G]`; a GRU resets after the product."""
    if cell.name != "gru":
        return cell.params(w_x, w_h, b_x + b_h)
    inside = 2 * w_h.shape[0]
    b = np.concatenate([b_x[:inside] + b_h[:inside], b_x[inside:]])
    return cell.params(w_x, w_h, b, b_h[inside:])


def params_without_bias(cell: Cell, w_x: AnyArray, w_h: AnyArray, reset: str = "after") -> Any:
    """Parameters of a layer that has no biases."""
    kind: Any = GRUBeforeParams if (cell.name, reset) == ("gru", "before") else cell.params
    return kind(**dict.fromkeys(kind._fields) | {"w_x": w_x, "w_h": w_h})


def two_biases(params: DenseParams) -> tuple[AnyArray, AnyArray]:
    """Input bias, which gets every sum, and hidden bias: zeros except for a GRU's `b_hn`."""
    params = with_biases(params)
    b_x = to_numpy(params.b)
    b_h = np.zeros_like(b_x)
    if isinstance(params, GRUParams) and params.b_hn is not None:
        b_h[2 * params.w_h.shape[0] :] = params.b_hn
    return b_x, b_h


def require_no_bias(what: str, params: DenseParams) -> None:
    """Raise ValueError if a bias that is to be left out is not zero."""
    if any(np.any(b) for b in two_biases(params)):
        raise ValueError(f"{what} has biases that are not zero; export them too")

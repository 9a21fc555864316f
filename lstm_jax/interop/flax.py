"""Weights to and from the cells of Flax Linen and nnx, as nested names of arrays.

    cell                    Linen                              nnx
    LSTMCell                ii if ig io, hi hf hg ho           ii if_ ig io, hi hf hg ho
    OptimizedLSTMCell       as LSTMCell                        dense_i, dense_h, gates i f g o
    GRUCell                 ir iz in, hr hz hn                 dense_i, dense_h, gates r z n
    SimpleCell              i, h                               dense_i, dense_h
    MGUCell                 if in, hf hn                       (nnx has none)

Each name holds a `kernel`, equal to ours, and some a `bias`. Both GRU cells reset after the
recurrent product; Linen's has a bias inside it (`hn`), nnx's has none. The bias of an LSTM belongs
to the hidden state, those of the others to the input. An MGUCell with `reset_gate=False`
has `b_hn` None here. The cells must have their default activations, and a SimpleCell
`residual=False`.

Linen's names are those of `variables["params"]["cell"]` with `nn.RNN` around the cell; nnx's are
those of `nnx.state(cell, nnx.Param)`. A tree with the single name `cell`, or a `Bidirectional`'s
with `forward_rnn` and `backward_rnn`, is also accepted. Flax's LSTM carry is `(c, h)`, ours
`LSTMCarry(h, c)`. Nothing here imports flax.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lstm_jax.cells import (
    MGU,
    DenseParams,
    GRUParams,
    MGUParams,
    cell_named,
    cell_of,
    with_biases,
)
from lstm_jax.interop import arrays as shared
from lstm_jax.interop.arrays import AnyArray
from lstm_jax.stack import Directions

Tree = dict[str, Any]
Sides = tuple[str, str]
"""Names of the kernels of the input and of the hidden state: one per gate, or one for all."""

_DENSE = ("dense_i", "dense_h")
_LINEN: dict[Sides, str] = {
    ("ii if ig io", "hi hf hg ho"): "lstm",
    ("ir iz in", "hr hz hn"): "gru",
    ("i", "h"): "rnn",
    ("if in", "hf hn"): "mgu",
}
# The width of a dense kernel determines the cell.
_NNX: dict[Sides, str] = {("ii if_ ig io", "hi hf hg ho"): "lstm", _DENSE: ""}
_DIRECTIONS = ("forward_rnn", "backward_rnn")
_CURES = {
    "Linen": "give a cell's part of variables['params'], or nnx's state to params_from_nnx",
    "nnx": "give nnx.state(cell, nnx.Param), or Linen's variables['params'] to params_from_linen",
}


def params_from_linen(tree: Mapping[str, Any]) -> Any:
    """Convert a Linen `OptimizedLSTMCell`, `LSTMCell`, `GRUCell`, `SimpleCell` or `MGUCell`.

    `tree` has the parameters of the cell, or of a `Bidirectional`, which become `Directions`.

    Raises:
        ValueError: names or shapes do not match such a cell.

    Examples:
        >>> from lstm_jax import interop
        >>> cell = {
        ...     "i": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)},
        ...     "h": {"kernel": np.ones((4, 4), np.float32)},
        ... }
        >>> interop.params_from_linen(cell).w_h.shape  # of a SimpleCell
        (4, 4)
    """
    return _from_tree(tree, _LINEN, "Linen")


def params_from_nnx(tree: Mapping[str, Any]) -> Any:
    """Convert an nnx `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`.

    `tree` is `nnx.state(cell, nnx.Param)`, or the same as plain dicts; a `Bidirectional`'s becomes
    `Directions`. A GRU gets a `b_hn` of zeros.

    Raises:
        ValueError: names or shapes do not match such a cell.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax import interop
        >>> cell = nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> interop.params_from_nnx(nnx.to_pure_dict(nnx.state(cell, nnx.Param))).w_x.shape
        (3, 16)
    """
    return _from_tree(tree, _NNX, "nnx")


def params_to_linen(params: Any) -> Tree:
    """Convert parameters to those of a Linen cell; the inverse of `params_from_linen`.

    Flax's cells always have biases: missing ones become zeros, here and for nnx.
    `Directions` give the tree of `nn.Bidirectional(nn.RNN(cell), nn.RNN(cell))`.

    Raises:
        ValueError: Flax lacks the cell: a GRU that resets before the product, or a projected LSTM.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> list(interop.params_to_linen(layers[0]))[:4]
        ['ii', 'if', 'ig', 'io']
    """
    shared.require_no_projection(params, "Flax", MGU)
    by_cell = {cell: sides for sides, cell in _LINEN.items()}
    return _to_tree(params, lambda one: by_cell[cell_of(one).name])


def params_to_nnx(params: Any, *, optimized: bool = True) -> Tree:
    """Convert parameters to what `nnx.update` takes; the inverse of `params_from_nnx`.

    `Directions` give the tree of an `nnx.Bidirectional`. An LSTM becomes an `OptimizedLSTMCell`, or
    an `LSTMCell` if `optimized` is False.

    Raises:
        ValueError: nnx lacks the cell: a GRU with its reset before the product or a nonzero `b_hn`,
            an MGU, or an LSTM with a projection.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> list(interop.params_to_nnx(layers[0]))
        ['dense_i', 'dense_h']
    """
    shared.require_no_projection(params, "Flax")

    def sides(one: DenseParams) -> Sides:
        if isinstance(one, GRUParams) and np.any(shared.two_biases(one)[1]):
            raise ValueError(
                "the GRU has a b_hn that is not zero, which nnx's GRUCell lacks; use Linen's, "
                "or lstm_jax.interop.nnx_modules.GRU"
            )
        return _DENSE if optimized or cell_of(one).name != "lstm" else next(iter(_NNX))

    return _to_tree(params, sides)


def _from_tree(tree: Mapping[str, Any], layouts: dict[Sides, str], flavour: str) -> Any:
    shared.require_kind("the tree", tree, Mapping, _CURES[flavour])
    if set(tree) == {"cell"}:
        return _from_tree(tree["cell"], layouts, flavour)
    if set(tree) == set(_DIRECTIONS):
        forward, backward = (_from_tree(tree[name], layouts, flavour) for name in _DIRECTIONS)
        return shared.both_directions(forward, backward, "convert the tree of each alone")
    for sides, cell_name in layouts.items():
        if set(tree) == set(" ".join(sides).split()):
            return shared.to_jax("the cell", _from_cell(tree, sides, cell_name))
    raise ValueError(
        f"the tree has {shared.listed(tree)}; expected the names of one {flavour} cell; "
        f"{_CURES[flavour]}"
    )


def _from_cell(tree: Mapping[str, Any], sides: Sides, cell_name: str) -> Any:
    inputs, hidden = (side.split() for side in sides)
    hidden_size, width = _kernel(tree, hidden[0]).shape
    cell = (
        cell_named(cell_name) if cell_name else shared.cell_of_width("dense_h", width, hidden_size)
    )
    width = cell.gates * hidden_size // len(hidden)  # of a gate, or of all
    w_h = np.concatenate([_kernel(tree, name, hidden_size, width) for name in hidden], axis=1)
    input_size = len(_kernel(tree, inputs[0]))
    w_x = np.concatenate([_kernel(tree, name, input_size, width) for name in inputs], axis=1)
    b = np.concatenate([_bias(tree, name, width) for name in _biased(cell.name, sides)])
    if cell.name not in ("gru", "mgu"):
        return cell.params(w_x, w_h, b)
    b_hn: AnyArray | None = np.zeros(hidden_size, b.dtype)
    if "hn" in tree:
        lacks_it = cell is MGU and "bias" not in tree["hn"]
        b_hn = None if lacks_it else _bias(tree, "hn", hidden_size)
    return cell.params(w_x, w_h, b, b_hn)


def _kernel(
    tree: Mapping[str, Any], name: str, rows: int | None = None, width: int | None = None
) -> AnyArray:
    if not isinstance(tree[name], Mapping):
        raise ValueError(f"{name} is {type(tree[name]).__name__}; expected a kernel's name and it")
    shared.require_names(name, tree[name], ["kernel"], ["bias"])
    return shared.read_array(f"{name}/kernel", tree[name]["kernel"], rows, width)


def _bias(tree: Mapping[str, Any], name: str, size: int) -> AnyArray:
    shared.require_names(name, tree[name], ["kernel", "bias"])
    return shared.read_array(f"{name}/bias", tree[name]["bias"], size)


def _to_tree(params: Any, sides_of: Callable[[Any], Sides]) -> Tree:
    if isinstance(params, Directions):
        each = zip(_DIRECTIONS, params, strict=True)
        return {name: {"cell": _to_tree(one, sides_of)} for name, one in each}
    if isinstance(params, GRUParams) and params.resets_before:
        raise ValueError(
            "a GRU with its reset gate before the recurrent product has no counterpart in Flax; "
            'use lstm_jax.interop.nnx_modules or linen_modules with reset="before"'
        )
    sides, params = sides_of(params), with_biases(params)
    tree: Tree = {}
    for side, kernel in zip(sides, (params.w_x, params.w_h), strict=True):
        names = side.split()
        for name, part in zip(names, np.split(np.asarray(kernel), len(names), axis=1), strict=True):
            tree[name] = {"kernel": shared.to_numpy(part)}
    names = _biased(cell_of(params).name, sides)
    for name, part in zip(names, np.split(np.asarray(params.b), len(names)), strict=True):
        tree[name]["bias"] = shared.to_numpy(part)
    if isinstance(params, GRUParams | MGUParams) and "hn" in tree and params.b_hn is not None:
        tree["hn"]["bias"] = shared.to_numpy(params.b_hn)
    return tree


def _biased(cell_name: str, sides: Sides) -> list[str]:
    return sides[cell_name == "lstm"].split()

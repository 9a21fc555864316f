"""Weights to and from Flax's cells, Linen's and nnx's, as nested names of arrays.

    cell                    Linen                              nnx
    LSTMCell                ii if ig io, hi hf hg ho           ii if_ ig io, hi hf hg ho
    OptimizedLSTMCell       as LSTMCell                        dense_i, dense_h, gates i f g o
    GRUCell                 ir iz in, hr hz hn                 dense_i, dense_h, gates r z n
    SimpleCell              i, h                               dense_i, dense_h

Each name holds a `kernel`, which is ours, and some a `bias`. Both GRU cells reset after the
recurrent product; nnx's has no bias inside it, Linen's has one (`hn`). An LSTM's bias is the hidden
state's, a GRU's and a SimpleCell's the input's. The activations must be the cells' defaults, and a
SimpleCell's `residual` False.

Linen's names are those of `variables["params"]["cell"]`, where `nn.RNN` is around the cell; nnx's
are those of `nnx.state(cell, nnx.Param)`. A tree with the name `cell` alone, or those of a
`Bidirectional`, `forward_rnn` and `backward_rnn`, is taken too. Flax's LSTM carry is `(c, h)`, ours
`LSTMCarry(h, c)`. Nothing here imports flax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lstm_jax.cells import DenseParams, GRUParams, cell_named, cell_of
from lstm_jax.interop import arrays as shared
from lstm_jax.interop.arrays import AnyArray
from lstm_jax.stack import Directions

Tree = dict[str, Any]
Sides = tuple[str, str]
"""The names of the inputs' kernels and those of the hidden state's: one a gate, or one for all."""

_DENSE = ("dense_i", "dense_h")
_LINEN: dict[Sides, str] = {
    ("ii if ig io", "hi hf hg ho"): "lstm",
    ("ir iz in", "hr hz hn"): "gru",
    ("i", "h"): "rnn",
}
# Whose cell a dense kernel is, its width tells.
_NNX: dict[Sides, str] = {("ii if_ ig io", "hi hf hg ho"): "lstm", _DENSE: ""}
_DIRECTIONS = ("forward_rnn", "backward_rnn")


def params_from_linen(tree: Mapping[str, Any]) -> Any:
    """Parameters of a Linen `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        tree: the cell's parameters; or a `Bidirectional`'s, which give `Directions`.

    Raises:
        ValueError: names or shapes that are no such cell's.

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
    """Parameters of an nnx `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        tree: `nnx.state(cell, nnx.Param)`, or that as plain dicts; or a `Bidirectional`'s, which
            give `Directions`. A GRU's `b_hn` is zeros.

    Raises:
        ValueError: names or shapes that are no such cell's.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax import interop
        >>> cell = nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
        >>> interop.params_from_nnx(nnx.to_pure_dict(nnx.state(cell, nnx.Param))).w_x.shape
        (3, 16)
    """
    return _from_tree(tree, _NNX, "nnx")


def params_to_linen(params: Any) -> Tree:
    """What goes under the Linen cell's name in `variables["params"]`; see `params_from_linen`.

    `Directions` give the tree of `nn.Bidirectional(nn.RNN(cell), nn.RNN(cell))`.

    Raises:
        ValueError: a GRU with its reset before the product, or an LSTM with a projection, which
            Flax has not.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> list(interop.params_to_linen(layers[0]))[:4]
        ['ii', 'if', 'ig', 'io']
    """
    shared.require_no_projection(params, "Flax")
    by_cell = {cell: sides for sides, cell in _LINEN.items()}
    return _to_tree(params, lambda one: by_cell[cell_of(one).name])


def params_to_nnx(params: Any, *, optimized: bool = True) -> Tree:
    """What `nnx.update` takes for the nnx cell; see `params_from_nnx`.

    Args:
        params: of one direction; `Directions` give the tree of an `nnx.Bidirectional`.
        optimized: whether an LSTM goes into `OptimizedLSTMCell` or into `LSTMCell`.

    Raises:
        ValueError: a GRU with its reset before the product, or with a `b_hn` that is not zero, or
            an LSTM with a projection: nnx has none of these.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> list(interop.params_to_nnx(layers[0]))
        ['dense_i', 'dense_h']
    """
    shared.require_no_projection(params, "Flax")

    def sides(one: DenseParams) -> Sides:
        if isinstance(one, GRUParams) and np.any(shared.to_numpy(one.b_hn)):
            raise ValueError(
                "the GRU has a b_hn that is not zero, and nnx's GRUCell no such bias; use Linen's, "
                "or lstm_jax.interop.nnx_modules.GRU"
            )
        return _DENSE if optimized or cell_of(one).name != "lstm" else next(iter(_NNX))

    return _to_tree(params, sides)


def _from_tree(tree: Mapping[str, Any], layouts: dict[Sides, str], flavour: str) -> Any:
    if set(tree) == {"cell"}:
        return _from_tree(tree["cell"], layouts, flavour)
    if set(tree) == set(_DIRECTIONS):
        return Directions(*(_from_tree(tree[name], layouts, flavour) for name in _DIRECTIONS))
    for sides, cell_name in layouts.items():
        if set(tree) == set(" ".join(sides).split()):
            return shared.to_jax("the cell", _from_cell(tree, sides, cell_name))
    raise ValueError(
        f"the tree has {shared.listed(tree)}; expected the names of one {flavour} cell"
    )


def _from_cell(tree: Mapping[str, Any], sides: Sides, cell_name: str) -> Any:
    w_x, w_h = (
        np.concatenate([_kernel(tree, name) for name in side.split()], axis=1) for side in sides
    )
    hidden_size, width = w_h.shape
    cell = (
        cell_named(cell_name) if cell_name else shared.cell_of_width("dense_h", width, hidden_size)
    )
    width = cell.gates * hidden_size
    shared.require_shape("the hidden state's kernels together", w_h, (hidden_size, width))
    shared.require_shape("the inputs' kernels together", w_x, (w_x.shape[0], width))
    b = np.concatenate([_bias(tree, name) for name in _biased(cell.name, sides)])
    shared.require_shape("the biases together", b, (width,))
    if cell.name != "gru":
        return cell.params(w_x, w_h, b)
    b_hn = _bias(tree, "hn", hidden_size) if "hn" in tree else np.zeros(hidden_size, b.dtype)
    return cell.params(w_x, w_h, b, b_hn)


def _kernel(tree: Mapping[str, Any], name: str) -> AnyArray:
    if not isinstance(tree[name], Mapping):
        raise ValueError(f"{name} is {type(tree[name]).__name__}; expected a kernel's name and it")
    shared.require_names(name, {*tree[name], "bias"}, ["kernel", "bias"])
    return shared.read_array(f"{name}/kernel", tree[name]["kernel"], None, None)


def _bias(tree: Mapping[str, Any], name: str, size: int | None = None) -> AnyArray:
    shared.require_names(name, tree[name], ["kernel", "bias"])
    return shared.read_array(f"{name}/bias", tree[name]["bias"], size)


def _to_tree(params: Any, sides_of: Callable[[DenseParams], Sides]) -> Tree:
    if isinstance(params, Directions):
        each = zip(_DIRECTIONS, params, strict=True)
        return {name: {"cell": _to_tree(one, sides_of)} for name, one in each}
    if isinstance(params, GRUParams) and params.b_hn is None:
        raise ValueError(
            "a GRU with its reset gate before the recurrent product has no counterpart in Flax; "
            'use lstm_jax.interop.nnx_modules or linen_modules with reset="before"'
        )
    sides = sides_of(params)
    tree: Tree = {}
    for side, kernel in zip(sides, (params.w_x, params.w_h), strict=True):
        names = side.split()
        for name, part in zip(names, np.split(np.asarray(kernel), len(names), axis=1), strict=True):
            tree[name] = {"kernel": shared.to_numpy(part)}
    names = _biased(cell_of(params).name, sides)
    for name, part in zip(names, np.split(np.asarray(params.b), len(names)), strict=True):
        tree[name]["bias"] = shared.to_numpy(part)
    if isinstance(params, GRUParams) and "hn" in tree:
        tree["hn"]["bias"] = shared.to_numpy(params.b_hn)
    return tree


def _biased(cell_name: str, sides: Sides) -> list[str]:
    """The names that have the cell's bias."""
    return sides[cell_name == "lstm"].split()

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

from lstm_jax.cells import Cell, GRUParams, Params, cell_named, cell_of
from lstm_jax.interop.arrays import (
    AnyArray,
    cell_of_width,
    listed,
    read_array,
    require_names,
    require_shape,
    to_jax,
    to_numpy,
)
from lstm_jax.stack import Directions

Tree = dict[str, Any]

_GATES = {"lstm": "ifgo", "gru": "rzn"}
_DIRECTIONS = ("forward_rnn", "backward_rnn")


def params_from_linen(tree: Mapping[str, Any]) -> Any:
    """Parameters of a Linen `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        tree: the cell's parameters; or a `Bidirectional`'s, which give `Directions`.

    Raises:
        ValueError: names or shapes that are no such cell's.
    """
    return _from_tree(tree, _linen_cell)


def params_from_nnx(tree: Mapping[str, Any]) -> Any:
    """Parameters of an nnx `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        tree: `nnx.state(cell, nnx.Param)`, or that as plain dicts; or a `Bidirectional`'s, which
            give `Directions`. A GRU's `b_hn` is zeros.

    Raises:
        ValueError: names or shapes that are no such cell's.
    """
    return _from_tree(tree, _nnx_cell)


def params_to_linen(params: Any) -> Tree:
    """What goes under the Linen cell's name in `variables["params"]`; see `params_from_linen`.

    `Directions` give the tree of `nn.Bidirectional(nn.RNN(cell), nn.RNN(cell))`.

    Raises:
        ValueError: a GRU with its reset before the product, which Flax has not.
    """
    return _to_tree(params, _linen_out)


def params_to_nnx(params: Any, *, optimized: bool = True) -> Tree:
    """What `nnx.update` takes for the nnx cell; see `params_from_nnx`.

    Args:
        params: of one direction; `Directions` give the tree of an `nnx.Bidirectional`.
        optimized: whether an LSTM goes into `OptimizedLSTMCell` or into `LSTMCell`.

    Raises:
        ValueError: a GRU with its reset before the product, or with a `b_hn` that is not zero,
            neither of which nnx has.
    """
    return _to_tree(params, lambda one: _nnx_out(one, optimized))


def _from_tree(tree: Mapping[str, Any], convert: Callable[[Mapping[str, Any]], Any]) -> Any:
    names = set(tree)
    if names == {"cell"}:
        return _from_tree(tree["cell"], convert)
    if names == set(_DIRECTIONS):
        return Directions(*(_from_tree(tree[name], convert) for name in _DIRECTIONS))
    params = convert(tree)
    _require_shapes(params)
    return to_jax("the cell", params)


def _to_tree(params: Any, convert: Callable[[Params], Tree]) -> Tree:
    if not isinstance(params, Directions):
        return convert(params)
    return {name: {"cell": convert(one)} for name, one in zip(_DIRECTIONS, params, strict=True)}


def _linen_cell(tree: Mapping[str, Any]) -> Any:
    for name, gates in _GATES.items():
        if set(tree) == {side + gate for side in "ih" for gate in gates}:
            return _of_gates(cell_named(name), tree, gates)
    if set(tree) == {"i", "h"}:
        return cell_named("rnn").params(*(_kernel(tree, side) for side in "ih"), _bias(tree, "i"))
    raise ValueError(f"the tree has {listed(tree)}; expected the names of one Linen cell")


def _nnx_cell(tree: Mapping[str, Any]) -> Any:
    if set(tree) == {"dense_i", "dense_h"}:
        return _of_dense(tree)
    spelt = {name.rstrip("_"): tree[name] for name in tree}
    if "if_" in tree and set(spelt) == {side + gate for side in "ih" for gate in "ifgo"}:
        return _of_gates(cell_named("lstm"), spelt, "ifgo")
    raise ValueError(f"the tree has {listed(tree)}; expected the names of one nnx cell")


def _of_gates(cell: Cell, tree: Mapping[str, Any], gates: str) -> Any:
    """Of one kernel a gate and side: the LSTM and Linen's GRU."""
    w_x, w_h = (
        np.concatenate([_kernel(tree, side + gate) for gate in gates], axis=1) for side in "ih"
    )
    biased = "h" if cell.name == "lstm" else "i"
    b = np.concatenate([_bias(tree, biased + gate) for gate in gates])
    return cell.params(w_x, w_h, b, *([_bias(tree, "hn")] if cell.name == "gru" else []))


def _of_dense(tree: Mapping[str, Any]) -> Any:
    """Of one kernel a side: nnx's cells but `LSTMCell`."""
    w_x, w_h = (_kernel(tree, name) for name in ("dense_i", "dense_h"))
    hidden_size, width = w_h.shape
    cell = cell_of_width("dense_h/kernel", width, hidden_size)
    b = _bias(tree, "dense_h" if cell.name == "lstm" else "dense_i")
    b_hn = [np.zeros(hidden_size, b.dtype)] if cell.name == "gru" else []
    return cell.params(w_x, w_h, b, *b_hn)


def _kernel(tree: Mapping[str, Any], name: str) -> AnyArray:
    if not isinstance(tree[name], Mapping):
        raise ValueError(f"{name} is {type(tree[name]).__name__}; expected a kernel's name and it")
    require_names(name, {*tree[name], "bias"}, ["kernel", "bias"])
    return read_array(f"{name}/kernel", tree[name]["kernel"], 2)


def _bias(tree: Mapping[str, Any], name: str) -> AnyArray:
    require_names(name, tree[name], ["kernel", "bias"])
    return read_array(f"{name}/bias", tree[name]["bias"], 1)


def _require_shapes(params: Any) -> None:
    """Raises ValueError where kernels and biases of one cell don't fit each other."""
    hidden_size = params.w_h.shape[0]
    width = cell_of(params).gates * hidden_size
    require_shape("the hidden state's kernels together", params.w_h, (hidden_size, width))
    require_shape("the inputs' kernels together", params.w_x, (params.w_x.shape[0], width))
    require_shape("the biases together", params.b, (width,))
    if isinstance(params, GRUParams):
        require_shape("hn/bias", np.asarray(params.b_hn), (hidden_size,))


def _linen_out(params: Params) -> Tree:
    _require_reset_after(params)
    cell = cell_of(params)
    if cell.name == "rnn":
        return _dense_out(params, "i", "h")
    tree = _gates_out(params, _GATES[cell.name])
    if isinstance(params, GRUParams):
        tree["hn"]["bias"] = to_numpy(params.b_hn)
    return tree


def _nnx_out(params: Params, optimized: bool) -> Tree:
    _require_reset_after(params)
    if isinstance(params, GRUParams) and np.any(to_numpy(params.b_hn)):
        raise ValueError(
            "the GRU has a b_hn that is not zero, and nnx's GRUCell no such bias; use Linen's, or "
            "lstm_jax.interop.nnx_modules.GRU"
        )
    if cell_of(params).name != "lstm" or optimized:
        return _dense_out(params, "dense_i", "dense_h")
    tree = _gates_out(params, _GATES["lstm"])
    return {"if_" if name == "if" else name: tree[name] for name in tree}


def _gates_out(params: Params, gates: str) -> Tree:
    biased = _biased(params)
    tree: Tree = {}
    for side, kernel in zip("ih", (params.w_x, params.w_h), strict=True):
        for gate, part in zip(gates, np.split(to_numpy(kernel), len(gates), axis=1), strict=True):
            tree[side + gate] = {"kernel": to_numpy(part)}
    for gate, part in zip(gates, np.split(to_numpy(params.b), len(gates)), strict=True):
        tree[biased + gate]["bias"] = to_numpy(part)
    return tree


def _dense_out(params: Params, i: str, h: str) -> Tree:
    tree: Tree = {i: {"kernel": to_numpy(params.w_x)}, h: {"kernel": to_numpy(params.w_h)}}
    tree[h if _biased(params) == "h" else i]["bias"] = to_numpy(params.b)
    return tree


def _biased(params: Params) -> str:
    """Which side of the cell has the bias."""
    return "h" if cell_of(params).name == "lstm" else "i"


def _require_reset_after(params: Params) -> None:
    if isinstance(params, GRUParams) and params.b_hn is None:
        raise ValueError(
            "a GRU with its reset gate before the recurrent product has no counterpart in Flax; "
            'use lstm_jax.interop.nnx_modules or linen_modules with reset="before"'
        )

"""Our own plain names: a path to each array, as a checkpoint has them.

    embedding  layers/0/w_x  layers/0/w_h  layers/0/b  layers/0/b_hn  output/w  output/b
    layers/0/forward/w_x  layers/0/backward/w_x  ...

Shapes are the parameters' own, `w_x [D, G]` and so on, and tell the cell. What a model lacks has no
name: an embedding where tokens enter one-hot, `b_hn` where a GRU resets before the product,
`output/w` where the output layer is tied to the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import Cell, GRUParams
from lstm_jax.interop.arrays import (
    AnyArray,
    cell_of_width,
    directions_of,
    read_array,
    require_chain,
    require_names,
    require_shape,
    to_jax,
    to_numpy,
)
from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModelParams, TiedOutputParams
from lstm_jax.stack import Directions

_NAME = re.compile(r"layers/(\d+)/(?:(forward|backward)/)?(w_x|w_h|b|b_hn)")


def layer_to_dict(layer: Any) -> dict[str, Any]:
    """A layer's arrays by the names of its fields, those of `Directions` one level down."""
    if isinstance(layer, Directions):
        return {name: layer_to_dict(one) for name, one in layer._asdict().items()}
    directions_of(layer)
    return {name: array for name, array in layer._asdict().items() if array is not None}


def layer_from_dict(tree: Mapping[str, Any]) -> Any:
    """The inverse of `layer_to_dict`, of arrays of any kind.

    Raises:
        ValueError: names or shapes that belong to no cell.
    """
    if set(tree) == set(Directions._fields):
        return Directions(*(layer_from_dict(tree[name]) for name in Directions._fields))
    require_names("the layer", {*tree, "b_hn"}, GRUParams._fields)
    hidden_size, width = tree["w_h"].shape
    cell = cell_of_width("w_h", width, hidden_size)
    _require_shapes(cell, tree, hidden_size)
    if "b_hn" in tree and cell.name != "gru":
        raise ValueError(f"the layer has a b_hn, but its shapes are of the cell {cell.name}")
    return cell.params(**({"b_hn": None, **tree} if cell.name == "gru" else tree))


def layers_to_plain(layers: tuple[Any, ...]) -> dict[str, AnyArray]:
    """Every array of a stack under its plain name."""
    return {
        f"layers/{index}/{name}": to_numpy(array)
        for index, layer in enumerate(layers)
        for name, array in _flattened(layer_to_dict(layer)).items()
    }


def layers_from_plain(arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    """The stack of which `layers_to_plain` made these.

    Raises:
        ValueError: names or shapes that are no stack's.
    """
    trees: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no plain name of a layer's array, as layers/0/w_x is")
        index, direction, field = match.groups()
        tree = trees.setdefault(index, {})
        if direction is not None:
            tree = tree.setdefault(direction, {})
        tree[field] = read_array(name, value, 2 if field.startswith("w") else 1)
    indices = list(map(str, range(max(1, len(trees)))))
    require_names("layers", trees, indices)
    layers = tuple(to_jax("the stack", layer_from_dict(trees[index])) for index in indices)
    require_chain(layers)
    return layers


def language_model_to_plain(params: LanguageModelParams) -> dict[str, AnyArray]:
    """Every array of a language model under its plain name."""
    arrays = {} if params.embedding is None else {"embedding": to_numpy(params.embedding)}
    arrays |= layers_to_plain(params.layers)
    return arrays | {f"output/{n}": to_numpy(a) for n, a in params.output._asdict().items()}


def language_model_from_plain(arrays: Mapping[str, Any]) -> LanguageModelParams:
    """The parameters of which `language_model_to_plain` made these.

    Raises:
        ValueError: names or shapes that are no language model's.
    """
    layers = {name: value for name, value in arrays.items() if name.startswith("layers/")}
    others = {name: value for name, value in arrays.items() if name not in layers}
    require_names(
        "the model", {*others, "embedding", "output/w"}, ("embedding", "output/w", "output/b")
    )
    if "embedding" not in others and "output/w" not in others:
        raise ValueError("the model has neither embedding nor output/w; one of them it must have")
    read = {
        name: to_jax(name, read_array(name, value, 1 if name == "output/b" else 2))
        for name, value in others.items()
    }
    b = read["output/b"]
    output = OutputParams(read["output/w"], b) if "output/w" in read else TiedOutputParams(b)
    return LanguageModelParams(read.get("embedding"), layers_from_plain(layers), output)


def _flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        inside = _flattened(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}/{rest}".rstrip("/"): array for rest, array in inside.items()}
    return flat


def _require_shapes(cell: Cell, tree: Mapping[str, Any], hidden_size: int) -> None:
    width = cell.gates * hidden_size
    require_shape("w_x", tree["w_x"], (tree["w_x"].shape[0], width))
    require_shape("b", tree["b"], (width,))
    if "b_hn" in tree:
        require_shape("b_hn", tree["b_hn"], (hidden_size,))

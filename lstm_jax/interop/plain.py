"""Our own plain names: a path for each array, as in checkpoints and the modules for Flax.

    embedding  layers/0/w_x  layers/0/w_h  layers/0/b  layers/0/b_hn  output/w  output/b
    layers/0/forward/w_x  layers/0/backward/w_x  ...

Shapes are the parameters' own, `w_x [D, G]` and so on, and determine the cell. What a model lacks
has no name: the embedding with one-hot inputs, `b` without biases, `b_hn` of a GRU that resets
before the product, `w_hr` of an LSTM without a projection, `output/w` of a tied output layer. A GRU
that has neither `b` nor `b_hn` resets after the product.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from lstm_jax.cells import GRUBeforeParams, GRUReset
from lstm_jax.interop import arrays as shared
from lstm_jax.interop.arrays import AnyArray
from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModelParams, TiedOutputParams
from lstm_jax.stack import Directions

_NAME = re.compile(r"layers/(\d+)/(?:(forward|backward)/)?(w_x|w_h|w_hr|b|b_hn)")


def layers_to_dicts(layers: tuple[Any, ...]) -> dict[str, Any]:
    """Arrays as nested dicts, one level per slash, by the part of plain names after `layers/`."""
    shared.require_chain(layers)
    return {str(index): _layer_to_dict(layer) for index, layer in enumerate(layers)}


def layers_from_dicts(tree: Mapping[str, Any], reset: GRUReset = "after") -> tuple[Any, ...]:
    """The inverse of `layers_to_dicts`; raises ValueError for invalid names or shapes.

    `reset` is that of a GRU without biases, which names do not show.
    """
    names = list(map(str, range(max(1, len(tree)))))
    shared.require_names("layers", tree, names)
    layers = tuple(_layer_from_dict(tree[name], reset) for name in names)
    shared.require_chain(layers)
    return layers


def layers_to_plain(layers: tuple[Any, ...]) -> dict[str, AnyArray]:
    """Every array of a stack by its plain name.

    Raises:
        ValueError: a layer does not fit the one below, or a GRU without biases resets before the
            product, which names and shapes do not show.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> list(interop.layers_to_plain(layers))
        ['layers/0/w_x', 'layers/0/w_h', 'layers/0/b']
    """
    _require_names(layers)
    return _by_path("layers/", layers)


def layers_from_plain(arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inverse of `layers_to_plain`.

    Raises:
        ValueError: names or shapes do not match a stack.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> (layer,) = interop.layers_from_plain(interop.layers_to_plain(layers))
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
        any_size = (None, None) if field.startswith("w") else (None,)
        tree[field] = shared.read_array(name, value, *any_size)
    return shared.to_jax("the stack", layers_from_dicts(trees))


def language_model_to_plain(params: LanguageModelParams) -> dict[str, AnyArray]:
    """Every array of a language model by its plain name.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> list(interop.language_model_to_plain(params))[-2:]
        ['output/w', 'output/b']
    """
    _require_names(params.layers)
    return _by_path("", params)


def language_model_from_plain(arrays: Mapping[str, Any]) -> LanguageModelParams:
    """The inverse of `language_model_to_plain`.

    Raises:
        ValueError: names or shapes do not match a language model.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> params = interop.language_model_from_plain(interop.language_model_to_plain(params))
    """
    layers = {name: value for name, value in arrays.items() if name.startswith("layers/")}
    others = {name: value for name, value in arrays.items() if name not in layers}
    shared.require_names("the model", others, ["output/b"], ["embedding", "output/w"])
    if "embedding" not in others and "output/w" not in others:
        raise ValueError("the model has neither embedding nor output/w; one of them it must have")
    stack = layers_from_plain(layers)
    tokens = len(shared.read_array("output/b", others["output/b"], None))
    input_size, size = shared.input_size(stack[0]), shared.output_size(stack[-1])
    shapes = {"embedding": (tokens, input_size), "output/w": (size, tokens), "output/b": (tokens,)}
    if "embedding" not in others:
        shared.require_one_hot("embedding", input_size, tokens)
    read = {name: shared.read_array(name, others[name], *shapes[name]) for name in others}
    read = shared.to_jax("the model", read)
    if "output/w" not in read:
        shared.require_shape("the tied embedding", read["embedding"], (tokens, size))
    b = read["output/b"]
    output = OutputParams(read["output/w"], b) if "output/w" in read else TiedOutputParams(b)
    return LanguageModelParams(read.get("embedding"), stack, output)


def _require_names(layers: tuple[Any, ...]) -> None:
    shared.require_chain(layers)
    for layer in layers:
        if any(isinstance(params, GRUBeforeParams) for params in shared.directions_of(layer)):
            raise ValueError(
                "a GRU without biases that resets before the product has no plain names; "
                'train one with gru_reset="after", or convert it to Keras'
            )


def _layer_to_dict(layer: Any) -> dict[str, Any]:
    if isinstance(layer, Directions):
        return {name: _layer_to_dict(one) for name, one in layer._asdict().items()}
    return {name: array for name, array in layer._asdict().items() if array is not None}


def _layer_from_dict(tree: Mapping[str, Any], reset: GRUReset) -> Any:
    if set(tree) == set(Directions._fields):
        return Directions(*(_layer_from_dict(tree[name], reset) for name in Directions._fields))
    shared.require_names("the layer", tree, ("w_h", "w_x"), ("b", "b_hn", "w_hr"))
    hidden_size, width = tree["w_h"].shape
    if "w_hr" in tree:
        shared.require_shape("w_hr", tree["w_hr"], (width // 4, hidden_size))
        hidden_size = width // 4
    cell = shared.cell_of_width("w_h", width, hidden_size)
    shared.require_shape("w_x", tree["w_x"], (tree["w_x"].shape[0], width))
    if "b_hn" in tree and cell.name != "gru":
        raise ValueError(f"the layer has a b_hn, but its shapes are of the cell {cell.name}")
    for name, size in (("b", width), ("b_hn", hidden_size)):
        if name in tree:
            shared.require_shape(name, tree[name], (size,))
    if cell.name == "gru" and not {"b", "b_hn"} & set(tree):
        return shared.params_without_bias(cell, **tree, reset=reset)
    return cell.params(**{**dict.fromkeys(cell.params._fields), **tree})


def _by_path(prefix: str, tree: Any) -> dict[str, AnyArray]:
    return {
        prefix + jax.tree_util.keystr(path, simple=True, separator="/"): shared.to_numpy(array)
        for path, array in jax.tree.leaves_with_path(tree)
    }

"""Weights to and from PyTorch's LSTM, GRU and RNN, by the names of a `state_dict`.

PyTorch's names and shapes for layer k (a backward direction's names end in `_reverse`):

    weight_ih_lk [G, D]   weight_hh_lk [G, H]   bias_ih_lk [G]   bias_hh_lk [G]

An LSTM with `proj_size` P also has `weight_hr_lk [P, H]`, and its `weight_hh_lk` is `[G, P]`. Names
of `nn.LSTMCell` and the like have no `_lk`. Modules in a list, such as an AWD-LSTM's `rnns.0.` and
`rnns.1.`, are stacked layers, each of its own size. The parts `module.` and `_orig_mod.` that
`DataParallel` and `torch.compile` add to names are ignored. A wrapped weight is read as the module
uses it outside training: `weight_hh_l0_raw` (weight dropout); `_g` and `_v`, or
`parametrizations.weight_hh_l0.original0` and `original1` (weight norm); `_orig` and `_mask`
(pruning).

Gates have the same order, i, f, g, o and r, z, n; weights are transposed. Nothing here imports
torch: functions take a mapping of names to tensors or numpy arrays, and return one to numpy arrays
(`module.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})`).

Only the sum of the two biases is kept: `bias_ih` gets it on export, and `bias_hh` gets zeros. For a
GRU's candidate the two must stay separate (see `arrays`).

Shapes: D input size, H hidden size, G = 4H, 3H or H gates, V vocabulary, E embedding size.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import Activation, CellName, DenseParams, GRUParams
from lstm_jax.interop import arrays as shared
from lstm_jax.interop.arrays import AnyArray
from lstm_jax.losses import OutputParams
from lstm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    LanguageModelParams,
    TiedOutputParams,
    output_layer,
)
from lstm_jax.stack import Directions

_ARRAY = r"(?:weight|bias)_(?:ih|hh|(?<=weight_)hr)(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?"
_NAME = re.compile(_ARRAY)
_WRAPPED = re.compile(rf"(?:parametrizations\.)?(?P<name>{_ARRAY})[._](?P<part>.+)")


class LanguageModelNames(NamedTuple):
    """Names of the embedding, layers and output layer in a PyTorch language model.

    Examples:
        >>> from lstm_jax import interop
        >>> interop.LanguageModelNames(rnn="lstm").decoder
        'decoder'
    """

    encoder: str = "encoder"
    rnn: str = "rnn"
    decoder: str = "decoder"


PYTORCH_NAMES = LanguageModelNames()


def layers_from_pytorch(
    state: Mapping[str, Any], prefix: str = "", *, cell: CellName | None = None
) -> tuple[Any, ...]:
    """Convert an `nn.LSTM`, `nn.GRU` or `nn.RNN`, a cell, or a list of these to a stack.

    Args:
        state: `state_dict()` of the module or of one that contains it. Without biases
            (`bias=False`) ours are None.
        prefix: beginning of the module's names, for example `"rnn."`.
        cell: the expected cell; by default given by the shapes: G = 4H means an LSTM, 3H a GRU, H
            an RNN. Run one with `nonlinearity="relu"` with `activation="relu"`: its weights do
            not show it.

    Returns:
        One entry per layer, `Directions` if bidirectional; dtypes are preserved.

    Raises:
        ValueError: names or shapes do not match such a module.

    Examples:
        >>> from lstm_jax import interop
        >>> ones = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4)}
        >>> state = {name: np.ones(shape, np.float32) for name, shape in ones.items()}
        >>> (layer,) = interop.layers_from_pytorch(state)
        >>> carry, ys = lstm_jax.lstm(layer, None, jnp.ones((10, 2, 3)))
    """
    _require_state(state)
    arrays = _unwrapped_names(shared.without_prefix(state, prefix))
    arrays = arrays or shared.without_prefix(_unwrapped_names(state), prefix)
    if state and not arrays:
        found = [name for name in state if "weight_ih" in name] or state
        raise ValueError(
            f"no name of the state begins with {prefix!r}; it has {shared.listed(found)}"
        )
    layers: list[Any] = []
    for inside in _modules(arrays):
        own = shared.without_prefix(arrays, inside)
        layers += _layers_of_module(own, prefix + inside, cell)
    shared.require_chain(tuple(layers))
    return tuple(layers)


def unwrapped_name(name: str) -> str:
    """The name without the parts that `DataParallel` and `torch.compile` add."""
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
    return ".".join(parts) or name


def layers_to_pytorch(
    layers: tuple[Any, ...], prefix: str = "", *, bias: bool | None = None
) -> dict[str, AnyArray]:
    """Convert a stack to the `state_dict` of an equivalent `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    Args:
        layers: the stack's parameters.
        prefix: prefix of each name.
        bias: whether the PyTorch module has biases; None if the layers have.

    Raises:
        ValueError: PyTorch lacks the stack: layers of several sizes, some with two directions, or a
            GRU with its reset before the product; or `bias` is False but a bias is not zero.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> interop.layers_to_pytorch(layers, "rnn.")["rnn.weight_hh_l0"].shape
        (16, 4)
    """
    shared.config_of_layers(layers, "a PyTorch module has one of each, so export each layer alone")
    arrays: dict[str, AnyArray] = {}
    for index, layer in enumerate(layers):
        for params, end in zip(shared.directions_of(layer), ("", "_reverse"), strict=False):
            arrays |= _direction_out(params, f"{prefix}{{}}_l{index}{end}", bias)
    return arrays


def language_model_from_pytorch(
    state: Mapping[str, Any],
    *,
    cell: CellName | None = None,
    tied: bool | None = None,
    activation: Activation = "tanh",
    names: LanguageModelNames = PYTORCH_NAMES,
) -> tuple[LanguageModel, LanguageModelParams]:
    """Convert a language model with the layout of PyTorch's examples.

        encoder.weight [V, E]   rnn.*   decoder.weight [V, H]   decoder.bias [V]

    Args:
        state: the model's `state_dict()`. Without `encoder.weight` inputs are one-hot; without
            `decoder.bias` ours is zeros.
        cell: see `layers_from_pytorch`.
        tied: whether decoder and encoder share one weight, kept once; by default if they are equal.
        activation: `"relu"` for an RNN with `nonlinearity="relu"`, which weights do not show.
        names: names of the three modules.

    Returns:
        The model, whose config has what the weights determine and defaults (dropout 0), and its
        parameters.

    Raises:
        ValueError: names or shapes do not match such a model, or `tied` weights differ.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> state = interop.language_model_to_pytorch(params, identity_encoder=True)
        >>> read, params = interop.language_model_from_pytorch(state)
        >>> read.config.embedding_size, read.vocabulary_size
        (5, 5)
    """
    _require_state(state)
    state = _unwrapped_names(state)
    names = LanguageModelNames(*map(unwrapped_name, names))
    known = tuple(f"{name}." for name in names)
    if strange := [name for name in state if not name.startswith(known)]:
        raise ValueError(
            f"the state has {shared.listed(strange)}; expected names in {', '.join(known)}"
        )
    layers = layers_from_pytorch(state, f"{names.rnn}.", cell=cell)
    cure = "a language model has one of each, so read the layers alone, by their prefix"
    stack = shared.config_of_layers(layers, cure)
    weight, bias = _decoder(state, f"{names.decoder}.", stack.output_size)
    input_size = shared.input_size(layers[0])
    embedding = _embedding(state, f"{names.encoder}.", (len(bias), input_size))
    embedding, weight, bias = shared.to_jax("the model", (embedding, weight, bias))
    equal = embedding is not None and np.array_equal(embedding, weight)
    if tied and not equal:
        raise ValueError("the weights of encoder and decoder differ; they are not tied")
    tied = equal if tied is None else tied
    size = None if embedding is None else input_size
    chosen = {**vars(stack), "activation": activation, "embedding_size": size, "tied": tied}
    config = LanguageModelConfig(**chosen)
    output = TiedOutputParams(bias) if tied else OutputParams(weight.T, bias)
    return LanguageModel(config, len(bias)), LanguageModelParams(embedding, layers, output)


def language_model_to_pytorch(
    params: LanguageModelParams,
    *,
    names: LanguageModelNames = PYTORCH_NAMES,
    identity_encoder: bool = False,
) -> dict[str, AnyArray]:
    """The inverse of `language_model_from_pytorch`; a tied weight occurs twice.

    Args:
        params: the model's parameters.
        names: names of the three modules.
        identity_encoder: for one-hot inputs, write the equivalent embedding, the identity `[V, V]`,
            for a module that requires one; otherwise there is no encoder.

    Raises:
        ValueError: as for `layers_to_pytorch`.

    Examples:
        >>> from lstm_jax import interop
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> params = model.init(jax.random.key(0))
        >>> list(interop.language_model_to_pytorch(params))[-2:]
        ['decoder.weight', 'decoder.bias']
    """
    output, embedding = output_layer(params), params.embedding
    if embedding is None and identity_encoder:
        embedding = jnp.eye(len(output.b), dtype=output.w.dtype)
    arrays = {} if embedding is None else {f"{names.encoder}.weight": shared.to_numpy(embedding)}
    arrays |= layers_to_pytorch(params.layers, f"{names.rnn}.")
    arrays[f"{names.decoder}.weight"] = shared.to_numpy(np.asarray(output.w).T)
    arrays[f"{names.decoder}.bias"] = shared.to_numpy(output.b)
    return arrays


def _require_state(state: Mapping[str, Any]) -> None:
    shared.require_kind("the state", state, Mapping, "give module.state_dict()")
    for name, value in state.items():
        if isinstance(value, Mapping):
            raise ValueError(f"{name} holds a mapping of its own; give that: checkpoint[{name!r}]")


def _unwrapped_names(state: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in state.items():
        plain = unwrapped_name(name)
        if plain in found:
            raise ValueError(f"the state has {plain} twice, with and without module. or _orig_mod.")
        found[plain] = value
    return found


def _modules(arrays: Mapping[str, Any]) -> list[str]:
    """Prefix of each module in a list, or one empty prefix."""
    indices = {name.partition(".")[0] for name in arrays}
    if not indices or not all(map(str.isdecimal, indices)):
        return [""]
    return [f"{index}." for index in sorted(indices, key=int)]


def _layers_of_module(state: dict[str, Any], prefix: str, cell: CellName | None) -> list[Any]:
    arrays = _without_wrappers(state, prefix)
    if strange := [prefix + name for name in arrays if not _NAME.fullmatch(name)]:
        inner = (name.partition("weight_ih") for name in arrays)
        inside = next((prefix + before for before, found, _ in inner if before and found), "rnn.")
        raise ValueError(
            f"{shared.listed(strange)}: no name of a PyTorch LSTM, GRU or RNN; if the module is "
            f"inside another, say where with a prefix such as {inside!r}"
        )
    if not arrays.keys() & {"weight_ih_l0", "weight_ih"}:
        raise ValueError(f"the state lacks {prefix}weight_ih_l0; it has {shared.listed(state)}")
    found = [match for match in map(_NAME.fullmatch, arrays) if match]
    if all(match["layer"] is None for match in found):
        return [_direction(arrays, "", prefix, cell)]
    count = 1 + max(int(match["layer"] or 0) for match in found)
    ends = ("", "_reverse") if any(match["reverse"] for match in found) else ("",)
    layers: list[Any] = []
    for index in range(count):
        each = [_direction(arrays, f"_l{index}{end}", prefix, cell) for end in ends]
        layers.append(Directions(*each) if len(each) == 2 else each[0])
    return layers


def _without_wrappers(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Arrays by their module's own names, with wrapped weights computed from their parts."""
    arrays: dict[str, Any] = {}
    wrapped: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        match = None if _NAME.fullmatch(name) else _WRAPPED.fullmatch(name)
        if match:
            wrapped.setdefault(match["name"], {})[match["part"]] = value
        else:
            arrays[name] = value
    return arrays | {name: _unwrapped(prefix + name, parts) for name, parts in wrapped.items()}


def _unwrapped(name: str, parts: dict[str, Any]) -> AnyArray:
    """The weight that a wrapper computes from its parts, outside training."""
    match sorted(parts):
        case ["raw"]:
            return shared.read_array(name, parts["raw"], None, None)
        case ["mask", "orig"]:
            orig = shared.read_array(name, parts["orig"], None, None)
            return orig * shared.read_array(name, parts["mask"], *orig.shape)
        case ["g", "v"] | ["original0", "original1"]:
            part_g, part_v = (parts[part] for part in sorted(parts))
            # A single norm for the whole weight (`dim=None`) has no axes.
            g = shared.read_array(name, part_g, *[None] * min(2, np.ndim(part_g)))
            g = g.reshape(g.shape or (1, 1))
            v = shared.read_array(name, part_v, None, None)
            wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
            # Each norm is taken over the axes in which it has size 1; by default, over a row.
            axes = tuple(axis for axis in range(g.ndim) if g.shape[axis] == 1)
            norm = np.sqrt(np.sum(wide**2, axis=axes, keepdims=True))
            shared.require_shape(f"the length of {name}", g, norm.shape)
            with np.errstate(all="ignore"):  # of a row of zeros PyTorch makes NaN too
                weight: AnyArray = (g * wide / norm).astype(v.dtype)
            return weight
    raise ValueError(
        f"{name} is wrapped in something with {shared.listed(parts)}, which is not supported; take "
        "it off in PyTorch, with torch.nn.utils.parametrize.remove_parametrizations or the like"
    )


def _direction(arrays: Mapping[str, Any], suffix: str, prefix: str, cell: CellName | None) -> Any:
    kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    given = [kind for kind in kinds if kind + suffix in arrays]
    has_bias = "bias_ih" in given or "bias_hh" in given
    where = f"{prefix or 'the module'} {suffix.lstrip('_')}".strip()
    shared.require_names(where, given, kinds if has_bias else kinds[:2])

    def read(kind: str, *shape: int | None) -> AnyArray:
        return shared.read_array(prefix + kind + suffix, arrays[kind + suffix], *shape)

    w_hh, w_hr = read("weight_hh", None, None), None
    width, hidden_size = w_hh.shape
    if f"weight_hr{suffix}" in arrays:
        w_hr = read("weight_hr", hidden_size, width // 4)
        hidden_size = width // 4
    name = f"{prefix}weight_hh{suffix}"
    found = shared.cell_of_width(name, width, hidden_size)
    if cell not in (None, found.name):
        raise ValueError(f"{name} belongs to the cell {found.name}, not {cell}")
    w_ih = read("weight_ih", width, None)
    if has_bias:
        biases = read("bias_ih", width), read("bias_hh", width)
        params = shared.params_of_two_biases(found, w_ih.T, w_hh.T, *biases)
    else:
        params = shared.params_without_bias(found, w_ih.T, w_hh.T)
    if w_hr is not None:
        params = params._replace(w_hr=w_hr.T)
    return shared.to_jax(name, params)


def _direction_out(params: DenseParams, name: str, bias: bool | None) -> dict[str, AnyArray]:
    if isinstance(params, GRUParams) and params.resets_before:
        raise ValueError(
            "a GRU with its reset gate before the recurrent product has no counterpart in PyTorch; "
            'train one with gru_reset="after"'
        )
    arrays = {"weight_ih": np.asarray(params.w_x).T, "weight_hh": np.asarray(params.w_h).T}
    if bias or (bias is None and params.b is not None):
        arrays["bias_ih"], arrays["bias_hh"] = shared.two_biases(params)
    else:
        shared.require_no_bias(name.format("bias"), params)
    w_hr = shared.projection_of(params)
    if w_hr is not None:
        arrays["weight_hr"] = np.asarray(w_hr).T
    return {name.format(kind): shared.to_numpy(array) for kind, array in arrays.items()}


def _embedding(state: Mapping[str, Any], prefix: str, shape: tuple[int, int]) -> AnyArray | None:
    inside = shared.without_prefix(state, prefix)
    if inside:
        shared.require_names(prefix.rstrip("."), inside, ["weight"])
        return shared.read_array(f"{prefix}weight", inside["weight"], *shape)
    tokens, input_size = shape
    shared.require_one_hot(f"{prefix}weight", input_size, tokens)
    return None


def _decoder(state: Mapping[str, Any], prefix: str, input_size: int) -> tuple[AnyArray, AnyArray]:
    inside = shared.without_prefix(state, prefix)
    shared.require_names(prefix.rstrip("."), inside, ["weight"], ["bias"])
    weight = shared.read_array(f"{prefix}weight", inside["weight"], None, input_size)
    bias = inside.get("bias", np.zeros(len(weight), weight.dtype))
    return weight, shared.read_array(f"{prefix}bias", bias, len(weight))

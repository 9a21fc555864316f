"""PyTorch's modules: what they compute is computed here, from weights that come and go by name.

As it was recorded; where PyTorch is installed, live with `--slow`.
"""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits
from interop_cases import (
    RESET_AFTER,
    config_of,
    draw_layers,
    draw_model,
    normal,
    outputs,
    with_gradients,
)
from recorded import Arrays, Peer, of_kind

from lstm_jax import cells
from lstm_jax.interop.pytorch import (
    language_model_from_pytorch,
    language_model_to_pytorch,
    layers_from_pytorch,
    layers_to_pytorch,
)
from lstm_jax.models import LanguageModel
from lstm_jax.stack import Directions

PEERS = ("torch",)
MODULES = {"lstm": "LSTM", "gru_after": "GRU", "rnn": "RNN"}
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
# T, B, D, H. Not a single unit: where that one saturates, 1 - h^2 cancels, a tanh's last bit weighs
# 6e-5 of the gradient, and no other unit sets the scale.
SHAPES = ((7, 3, 4, 5), (1, 2, 1, 6))


def module_of(form: str, *sizes: int, **options: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return getattr(torch.nn, MODULES[form])(*sizes, **options)


def tensors(arrays: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def state_of(module: Any) -> Arrays:
    return {f"state {name}": tensor.numpy() for name, tensor in module.state_dict().items()}


def theirs(
    form: str,
    shape: tuple[int, ...] = SHAPES[0],
    seed: int = 0,
    lengths: Any = None,
    dtype: str = "float32",
    **options: Any,
) -> Arrays:
    """PyTorch's values and gradients of a weighted sum of them, and all that they are of."""
    import torch

    times, batch, input_size, hidden = shape
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> Any:
        return torch.tensor(rng.standard_normal(shape).astype(dtype))

    module = module_of(form, input_size, hidden, **options).to(getattr(torch, dtype))
    each, size = (2 if options.get("bidirectional") else 1), options.get("proj_size") or hidden
    xs, weight_ys = drawn(times, batch, input_size), drawn(times, batch, each * size)
    count = 2 if form == "lstm" else 1
    shapes = [(options["num_layers"] * each, batch, n) for n in (size, hidden)[:count]]
    states, weight_states = ([drawn(*shape) for shape in shapes] for _ in range(2))
    for tensor in (xs, *states):
        tensor.requires_grad_()
    inputs = xs
    if lengths is not None:
        pack = partial(torch.nn.utils.rnn.pack_padded_sequence, enforce_sorted=False)
        inputs = pack(xs, torch.tensor(lengths))
    ys, finals = module(inputs, tuple(states) if count == 2 else states[0])
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=times)
    finals = list(finals) if count == 2 else [finals]
    pairs = zip([weight_ys, *weight_states], [ys, *finals], strict=True)
    torch.stack([(weight * result).sum() for weight, result in pairs]).sum().backward()
    found = {"xs": xs, "weight_ys": weight_ys, "ys": ys, "dxs": xs.grad}
    for index, state in enumerate(states):
        found |= {f"carry {index}": state, f"dcarry {index}": state.grad}
        found |= {f"weight {index}": weight_states[index], f"final {index}": finals[index]}
    for name, parameter in module.named_parameters():
        found |= {f"state {name}": parameter, f"dstate {name}": parameter.grad}
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    return arrays if lengths is None else {"lengths": np.array(lengths), **arrays}


def of_one_bias(gradients: Arrays, form: str) -> Arrays:
    """Of two biases that are only added each has the sum's gradient, which then counts once."""
    kept = {name: array.copy() for name, array in gradients.items()}
    for name, array in kept.items():
        if name.startswith("bias_hh"):
            array[: len(array) * 2 // 3 if form == "gru_after" else None] = 0
    return kept


def compare(form: str, found: Arrays, **options: Any) -> None:
    """Ours with PyTorch's: values, gradients, and the weights on their way back."""
    layers_number, bidirectional = options["num_layers"], options.get("bidirectional", False)
    hidden = found["carry 1" if form == "lstm" else "carry 0"].shape[-1]
    names = {"proj_size": "projection_size", "nonlinearity": "activation"}
    told = {ours: options[name] for name, ours in names.items() if name in options}
    config = config_of(form, layers_number, bidirectional, hidden, **told)

    def carry(name: str) -> Any:
        kind = cells.cell_named(config.cell).carry
        each = [kind(*state) for state in zip(*of_kind(found, name).values(), strict=True)]
        return tuple(map(Directions, each[::2], each[1::2])) if bidirectional else tuple(each)

    state, xs, mask = of_kind(found, "state"), found["xs"], None
    if "lengths" in found:
        mask = np.arange(len(xs))[:, None] < found["lengths"]
    layers = layers_from_pytorch(state)
    dlayers = layers_from_pytorch(of_one_bias(of_kind(found, "dstate"), form))
    weights = (carry("weight"), found["weight_ys"])
    results, gradients = with_gradients(config, (layers, carry("carry"), xs), mask, weights)
    tolerance = TOLERANCES[str(xs.dtype)]
    assert_near(results, (carry("final"), found["ys"]), tolerance)
    assert_near(gradients[0], dlayers, tolerance)
    assert_near(gradients[1:], (carry("dcarry"), found["dxs"]), tolerance)
    back = layers_to_pytorch(layers)
    assert list(back) == list(state)
    assert_same_bits(layers_from_pytorch(back), layers)


BOTH = {"num_layers": 2, "bidirectional": True}
OF_EACH: list[dict[str, Any]] = [
    {"num_layers": 1},
    {"num_layers": 1, "shape": SHAPES[1]},
    {"num_layers": 3, "bidirectional": True, "dtype": "float64"},
    {"num_layers": 2, "bias": False, "dtype": "float64"},
    {**BOTH, "lengths": [7, 1, 4]},
    {**BOTH, "lengths": [3, 6, 2], "seed": 1},
]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, options) for form in RESET_AFTER for options in OF_EACH),
        # Another shape of each weight, and two sizes of states.
        ("lstm", {**BOTH, "proj_size": 2, "dtype": "float64"}),
        ("rnn", {**BOTH, "nonlinearity": "relu", "dtype": "float64"}),
    ],
)
def test_values_and_gradients_are_pytorchs(peer: Peer, form: str, options: dict[str, Any]) -> None:
    """Of packed sequences, where they have lengths, our masked ones."""
    found = peer(str((form, *options.items())), partial(theirs, form, **options))
    with jax.enable_x64(options.get("dtype") == "float64"):
        compare(form, found, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_parameters_are_read_with_their_gradients_needed(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    module = module_of("lstm", 3, 4).to(getattr(torch, dtype))
    (layer,) = layers_from_pytorch(dict(module.named_parameters()))
    assert layer.w_x.dtype == layer.b.dtype == dtype
    expected = module.weight_ih_l0.detach().float().numpy().T
    np.testing.assert_array_equal(layer.w_x.astype(jnp.float32), expected)


def wrapped(how: str) -> Arrays:
    """An LSTM inside one of PyTorch's wrappers, beside the weights that it multiplies by."""
    from torch.nn.utils import parametrizations, prune

    module = module_of("lstm", 3, 4)
    match how.split():
        case ["pruning"]:
            prune.l1_unstructured(module, "weight_hh_l0", 0.3)
        case ["norm", name, dim]:
            parametrizations.weight_norm(module, name, None if dim == "None" else int(dim))
        case ["spectral"]:
            parametrizations.spectral_norm(module, "weight_hh_l0")
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    whole = {f"whole {name}": getattr(module, name).detach().numpy() for name in names}
    return state_of(module) | whole


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pruning", None),
        ("norm weight_hh_l0 0", None),
        ("norm weight_ih_l0 1", None),
        ("norm weight_hh_l0 None", None),
        ("spectral", r"weight_hh_l0 is wrapped.*remove_parametrizations"),
    ],
)
def test_a_wrapped_weight_is_what_the_module_multiplies_by_or_is_named(
    peer: Peer, how: str, message: str | None
) -> None:
    found = peer(how, lambda: wrapped(how))
    state, whole = (of_kind(found, kind) for kind in ("state", "whole"))
    if message is None:
        assert not state.keys() >= whole.keys()
        assert_near(*map(layers_from_pytorch, (state, whole)), 1e-6)
    else:
        with pytest.raises(ValueError, match=message):
            layers_from_pytorch(state)


def dropped_out(state: Arrays) -> Arrays:
    """A state as weight dropout leaves it: a weight as it is, beside what a step left of it."""
    state = {f"module.{name}": value for name, value in state.items()}
    whole = state["module.weight_hh_l0"]
    return state | {"weight_hh_l0_raw": whole, "module.weight_hh_l0": np.zeros_like(whole)}


def old_norm(state: Arrays) -> Arrays:
    """A state as the weight norm before parametrisations has it."""
    rest = {name: value for name, value in state.items() if name != "weight_hh_l0"}
    weight = state["weight_hh_l0"]
    norms = np.linalg.norm(weight, axis=1, keepdims=True)
    return rest | {"weight_hh_l0_g": norms, "weight_hh_l0_v": 3 * weight}


@pytest.mark.parametrize("wrap", [dropped_out, old_norm])
def test_a_weight_kept_under_other_names_is_found(wrap: Any) -> None:
    state = layers_to_pytorch(draw_layers("lstm", 1, False, 3, 4))
    assert_near(*map(layers_from_pytorch, (wrap(state), state)), 1e-6)


def test_modules_in_a_list_are_layers_of_their_own_sizes(peer: Peer) -> None:
    xs = normal(1, 5, 2, 3)

    def list_of_modules() -> Arrays:
        import torch

        modules = [module_of("lstm", d, h) for d, h in pairwise((3, 8, 8, 4))]
        states = {f"{n} {k[6:]}": a for n, m in enumerate(modules) for k, a in state_of(m).items()}
        ys = torch.from_numpy(xs)
        with torch.no_grad():
            for module in modules:
                ys = module(ys)[0]
        return states | {"ys": ys.numpy()}

    recorded = peer("", list_of_modules)
    each = [of_kind(recorded, str(n)) for n in range(3)]
    named = {f"rnns.{n}.{k}": v for n, m in enumerate(each) for k, v in dropped_out(m).items()}
    found = layers_from_pytorch(named, "rnns.")
    assert_same_bits(found, tuple(layers_from_pytorch(m)[0] for m in each))
    assert_near(outputs(config_of("lstm", 3, False, 4), found, xs), recorded["ys"], 1e-6)
    with pytest.raises(ValueError, match=r"hidden sizes \[4, 8\].*each layer alone"):
        layers_to_pytorch(found)
    cells_in_order = {f"{n}.weight_ih": normal(n, 16, 4) for n in range(11)}
    cells_in_order |= {f"{n}.weight_hh": normal(n, 16, 4) for n in range(11)}
    tenth = layers_from_pytorch(cells_in_order)[10]
    np.testing.assert_array_equal(tenth.w_h.T, cells_in_order["10.weight_hh"])


def example(form: str, size: int, tied: bool, **options: Any) -> Any:
    """The layout that PyTorch's own language-model example has, of 11 tokens."""
    import torch

    rnn, encoder = module_of(form, size, 4, **options), torch.nn.Embedding(11, size)
    decoder = torch.nn.Linear(8 if options.get("bidirectional") else 4, 11)
    if tied:
        decoder.weight = encoder.weight
    return torch.nn.ModuleDict({"encoder": encoder, "rnn": rnn, "decoder": decoder})


def logits_of(model: Any) -> Arrays:
    import torch

    tokens = np.random.default_rng(0).integers(0, 11, (6, 2))
    with torch.no_grad():
        hidden = model["rnn"](model["encoder"](torch.from_numpy(tokens)))[0]
        logits = model["decoder"](hidden).numpy()
    return {"tokens": tokens, "logits": logits, **state_of(model)}


@partial(jax.jit, static_argnums=0)
def our_logits(model: LanguageModel, params: Any, tokens: np.ndarray) -> Any:
    return model.apply(params, None, tokens)[1]


@pytest.mark.parametrize(
    ("form", "layers", "bidirectional", "tied"),
    [("lstm", 1, False, False), ("gru_after", 2, False, True), ("rnn", 2, True, False)],
)
def test_a_language_model_of_pytorchs_has_the_same_logits_here(
    peer: Peer, form: str, layers: int, bidirectional: bool, tied: bool
) -> None:
    size = 4 if tied else 3
    options = {"num_layers": layers, "bidirectional": bidirectional}
    their = partial(example, form, size, tied, **options)
    found = peer(str((form, layers, bidirectional, tied)), lambda: logits_of(their()))
    model, params = language_model_from_pytorch(of_kind(found, "state"))
    config = model.config
    assert config.cell == form.partition("_")[0]
    assert (config.layers, config.bidirectional, config.tied) == (layers, bidirectional, tied)
    assert (model.vocabulary_size, config.embedding_size, config.hidden_size) == (11, size, 4)
    assert_near(our_logits(model, params, found["tokens"]), found["logits"], 1e-5)
    relu, _ = language_model_from_pytorch(of_kind(found, "state"), activation="relu")
    assert relu.config == dataclasses.replace(config, activation="relu")
    exported = language_model_to_pytorch(params)
    assert list(exported) == list(of_kind(found, "state"))
    if peer.is_live:
        again = their()
        again.load_state_dict(tensors(exported), strict=True)
        assert_near(logits_of(again)["logits"], found["logits"], 1e-5)


def test_an_identity_for_an_encoder_feeds_tokens_one_hot() -> None:
    config, params = draw_model("lstm", 1, False, "one-hot")
    state = language_model_to_pytorch(params, identity_encoder=True)
    tokens = np.random.default_rng(0).integers(0, 7, (6, 2))
    found, expected = (
        our_logits(*model, tokens)
        for model in (language_model_from_pytorch(state), (LanguageModel(config, 7), params))
    )
    assert_near(found, expected, 1e-6)

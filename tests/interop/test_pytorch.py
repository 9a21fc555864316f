"""Weights to and from PyTorch: round trips keep every bit, and PyTorch's own run agrees.

As it was recorded; where PyTorch is installed, live with `--slow`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import (
    RESET_AFTER,
    assert_near,
    assert_same_bits,
    config_of,
    draw_layers,
    normal,
    outputs,
    stacks,
)
from recorded import Arrays, Peer

from lstm_jax.interop import pytorch
from lstm_jax.losses import OutputParams
from lstm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    LanguageModelParams,
    TiedOutputParams,
)
from lstm_jax.stack import Directions

PEERS = ("torch",)
MODULES = {"lstm": "LSTM", "gru_after": "GRU", "rnn": "RNN"}
forms = pytest.mark.parametrize("form", RESET_AFTER)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**31 - 1)


def model_of(
    form: str, tokens: int, embedding: int, hidden: int, tied: bool, **options: Any
) -> Any:
    """The layout that PyTorch's own language-model example has."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torch.nn.Embedding(tokens, embedding)
            self.rnn = getattr(torch.nn, MODULES[form])(embedding, hidden, **options)
            outputs = hidden * (2 if options.get("bidirectional") else 1)
            self.decoder = torch.nn.Linear(outputs, tokens)
            if tied:
                self.decoder.weight = self.encoder.weight

        def forward(self, tokens: Any) -> Any:
            return self.decoder(self.rnn(self.encoder(tokens))[0])

    torch.manual_seed(1)
    return Model()


def module_of(form: str, input_size: int, hidden: int, **options: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return getattr(torch.nn, MODULES[form])(input_size, hidden, **options).double()


def tensors(arrays: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def applied(module: Any, inputs: np.ndarray) -> np.ndarray:
    """What a module, or the layers that are one, make of inputs."""
    import torch

    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs))
    return (outputs[0] if isinstance(outputs, tuple) else outputs).numpy()


def split_state(found: Arrays) -> tuple[Arrays, Arrays]:
    """A state_dict, and what else was recorded beside it."""
    named = {
        name.removeprefix("state "): array for name, array in found.items() if "state " in name
    }
    return named, {name: array for name, array in found.items() if "state " not in name}


def state_of(module: Any) -> Arrays:
    return {f"state {name}": tensor.numpy() for name, tensor in module.state_dict().items()}


def summed_biases(state: dict[str, Any], hidden: int, is_gru: bool) -> dict[str, np.ndarray]:
    """What of the state a computation depends on: sums, where biases are only ever added."""
    arrays = {name: np.asarray(value) for name, value in state.items()}
    kept = {}
    for name, array in arrays.items():
        other = arrays.get(name.replace("_ih_", "_hh_"))
        if not name.startswith("bias"):
            kept[name] = array
        elif "_ih_" in name:
            inside = 2 * hidden if is_gru else len(array)
            kept[name] = array[:inside] + other[:inside]
            kept[f"{name} apart"] = np.concatenate([array[inside:], other[inside:]])
    return kept


@forms
@stacks
@settings(max_examples=4)
@given(sizes=sizes, seed=seeds, prefix=st.sampled_from(["", "rnn.", "a.b."]))
def test_our_layers_come_back_bit_for_bit(
    form: str, layers: int, bidirectional: bool, sizes: tuple[int, int], seed: int, prefix: str
) -> None:
    drawn = draw_layers(form, layers, bidirectional, *sizes, seed)
    state = pytorch.layers_to_pytorch(drawn, prefix)
    assert all(name.startswith(prefix) for name in state)
    assert_same_bits(pytorch.layers_from_pytorch(state, prefix), drawn)


@pytest.mark.slow
@forms
def test_our_layers_come_back_bit_for_bit_as_pytorch_s_tensors(form: str) -> None:
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    drawn = draw_layers(form, 2, True, 3, 4)
    state = tensors(pytorch.layers_to_pytorch(drawn, "rnn."))
    assert_same_bits(pytorch.layers_from_pytorch(state, "rnn."), drawn)


@pytest.mark.usefixtures("float64")
@forms
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias"),
    [(1, False, True), (2, False, True), (1, True, True), (3, True, True), (2, True, False)],
)
def test_pytorch_s_module_computes_the_same_before_and_after_the_round_trip(
    peer: Peer, form: str, layers: int, bidirectional: bool, bias: bool
) -> None:
    size, hidden = 3, 4
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}

    def theirs() -> Arrays:
        module = module_of(form, size, hidden, **options)
        xs = normal(1, 5, 3, size, dtype=np.float64)
        return {"xs": xs, "ys": applied(module, xs), **state_of(module)}

    state, rest = split_state(peer(str((form, layers, bidirectional, bias)), theirs))
    xs, expected = rest["xs"], rest["ys"]
    imported = pytorch.layers_from_pytorch(state)
    found = outputs(config_of(form, layers, bidirectional, hidden), imported, xs)
    assert_near(found, expected, 1e-12)

    exported = pytorch.layers_to_pytorch(imported, bias=bias)
    assert list(exported) == list(state)
    assert_same_bits(
        summed_biases(exported, hidden, form == "gru_after"),
        summed_biases(state, hidden, form == "gru_after"),
    )
    if peer.is_live:
        again = module_of(form, size, hidden, **options)
        again.load_state_dict(tensors(exported), strict=True)
        assert_near(applied(again, xs), expected, 1e-12)


@pytest.mark.slow
def test_bfloat16_and_float16_and_what_needs_gradients_are_read_as_they_are() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    module = torch.nn.LSTM(3, 4)
    for dtype, ours in ((torch.bfloat16, jnp.bfloat16), (torch.float16, jnp.float16)):
        (layer,) = pytorch.layers_from_pytorch(dict(module.to(dtype).named_parameters()))
        assert layer.w_x.dtype == layer.b.dtype == ours
        expected = module.weight_ih_l0.detach().float().numpy().T
        np.testing.assert_array_equal(layer.w_x.astype(jnp.float32), expected)


def test_what_comes_in_is_a_copy() -> None:
    state = pytorch.layers_to_pytorch(draw_layers("gru_after", 1, False, 3, 64))
    imported = pytorch.layers_from_pytorch(state)
    before = [np.array(array) for array in imported[0]]
    for array in state.values():
        array[:] = 7
    assert_same_bits(tuple(imported[0]), tuple(before))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_hh_l0": None}, r"lacks weight_hh"),
        ({"bias_hh_l0": None}, r"lacks bias_hh"),
        ({"weight_ih_l0": None}, r"the state lacks weight_ih_l0; it has bias_hh_l0"),
        ({"weight_hr_l0": np.ones((2, 4))}, r"proj_size.*not supported"),
        ({"a.rnn.weight_ih_l0": np.ones((2, 4))}, r"prefix such as 'a\.rnn\.'"),
        (
            {"state_dict": {"weight_ih_l0": np.ones((2, 4))}},
            r"give that: checkpoint\['state_dict'\]",
        ),
        ({"bias_ih_l0": np.ones(15)}, r"bias_ih_l0 has shape \(15,\); expected \(16,\)"),
        ({"weight_ih_l0": np.ones((12, 3))}, r"weight_ih_l0 has shape \(12, 3\); expected \(16, 3"),
        ({"weight_hh_l0": np.ones((16, 5))}, r"16 wide for a hidden size of 5"),
        ({"weight_hh_l0": np.ones(16)}, r"expected 2 dimensions"),
        ({"weight_hh_l0": np.ones((16, 4), int)}, r"int64; expected an array of floating-point"),
        ({"weight_ih_l2": np.ones((16, 4))}, r"l1 lacks"),
        ({"weight_ih_l0_reverse": np.ones((16, 3))}, r"l0_reverse lacks weight_hh"),
        ({"bias_ih_l0": np.ones(16)}, r"float64; set jax_enable_x64"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_words(
    change: dict[str, Any], message: str
) -> None:
    state: dict[str, Any] = pytorch.layers_to_pytorch(draw_layers("lstm", 1, False, 3, 4))
    state |= change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        pytorch.layers_from_pytorch(state)


def test_a_projected_lstm_of_pytorch_s_own_is_refused(peer: Peer) -> None:
    def projected() -> Arrays:
        import torch

        torch.manual_seed(0)
        return state_of(torch.nn.LSTM(3, 4, proj_size=2))

    state, _ = split_state(peer("", projected))
    with pytest.raises(ValueError, match=r"weight_hr_l0.*proj_size"):
        pytorch.layers_from_pytorch(state)


@forms
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_is_a_layer(peer: Peer, form: str, bias: bool) -> None:
    def cell() -> Arrays:
        import torch

        torch.manual_seed(0)
        return state_of(getattr(torch.nn, f"{MODULES[form]}Cell")(3, 4, bias=bias))

    state, _ = split_state(peer(f"{form} {bias}", cell))
    of_layer = {f"{name}_l0": value for name, value in state.items()}
    assert_same_bits(pytorch.layers_from_pytorch(state), pytorch.layers_from_pytorch(of_layer))
    del state["weight_hh"]
    with pytest.raises(ValueError, match="the module lacks weight_hh; it has"):
        pytorch.layers_from_pytorch(state)


def pruned(module: Any) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(module, "weight_hh_l0", 0.3)
    assert (module.weight_hh_l0 == 0).any()


def normed(module: Any, name: str = "weight_hh_l0", dim: int | None = 0) -> None:
    from torch.nn.utils.parametrizations import weight_norm

    weight_norm(module, name, dim)


def without_weights(state: Arrays) -> Arrays:
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


WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


WRAPPERS = {
    "pruning": pruned,
    "norm": normed,
    "norm of columns": partial(normed, name="weight_ih_l0", dim=1),
    "norm of all": partial(normed, dim=None),
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_weight_is_what_the_module_multiplies_by(peer: Peer, how: str) -> None:
    def wrapped() -> Arrays:
        import torch

        torch.manual_seed(0)
        module = torch.nn.LSTM(3, 4)
        WRAPPERS[how](module)
        return state_of(module) | {name: getattr(module, name).detach().numpy() for name in WEIGHTS}

    state, expected = split_state(peer(how, wrapped))
    assert "weight_hh_l0" not in state or "weight_ih_l0" not in state
    assert_near(*map(pytorch.layers_from_pytorch, (state, expected)), 1e-6)


@pytest.mark.parametrize("wrap", [without_weights, old_norm])
def test_a_weight_kept_under_other_names_is_found(wrap: Callable[[Arrays], Arrays]) -> None:
    shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": 16, "bias_hh_l0": 16}
    state = {name: normal(seed, *np.atleast_1d(shapes[name])) for seed, name in enumerate(shapes)}
    assert_near(*map(pytorch.layers_from_pytorch, (wrap(state), state)), 1e-6)


def test_other_wrappers_are_named_with_their_cure(peer: Peer) -> None:
    def wrapped() -> Arrays:
        import torch
        from torch.nn.utils.parametrizations import spectral_norm

        torch.manual_seed(0)
        return state_of(spectral_norm(torch.nn.LSTM(3, 4), "weight_hh_l0"))

    state, _ = split_state(peer("", wrapped))
    with pytest.raises(ValueError, match=r"weight_hh_l0 is wrapped.*remove_parametrizations"):
        pytorch.layers_from_pytorch(state)


@pytest.mark.parametrize("wrapper", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_names_that_training_wraps_are_the_module_s(wrapper: str) -> None:
    state = model_state()
    wrapped = {wrapper.format(name): value for name, value in state.items()}
    expected = pytorch.language_model_from_pytorch(state)
    own = pytorch.LanguageModelNames(*map(wrapper.format, pytorch.PYTORCH_NAMES))
    for names in (pytorch.PYTORCH_NAMES, own):
        model, params = pytorch.language_model_from_pytorch(wrapped, names=names)
        assert model == expected[0]
        assert_same_bits(params, expected[1])
    for prefix in ("rnn.", wrapper.format("rnn.")):
        assert_same_bits(pytorch.layers_from_pytorch(wrapped, prefix), expected[1].layers)
    inner = {wrapper.format(n[4:]): state[n] for n in state if n.startswith("rnn.")}
    assert_same_bits(pytorch.layers_from_pytorch(inner), expected[1].layers)
    with pytest.raises(ValueError, match="twice, with and without module"):
        pytorch.language_model_from_pytorch(wrapped | state)


def test_modules_in_a_list_are_layers_of_their_own_sizes(peer: Peer) -> None:
    xs = normal(1, 5, 2, 3)

    def list_of_modules() -> Arrays:
        import torch

        torch.manual_seed(0)
        each = [torch.nn.LSTM(d, h) for d, h in pairwise((3, 8, 8, 4))]
        states = {
            f"state {n} {name}": tensor.numpy()
            for n, module in enumerate(each)
            for name, tensor in module.state_dict().items()
        }
        with torch.no_grad():
            return states | {"ys": each[2](each[1](each[0](torch.from_numpy(xs))[0])[0])[0].numpy()}

    state, rest = split_state(peer("", list_of_modules))
    each = [{k[2:]: v for k, v in state.items() if k.startswith(f"{n} ")} for n in range(3)]
    found = pytorch.layers_from_pytorch(
        {f"rnns.{n}.{k}": v for n, m in enumerate(each) for k, v in without_weights(m).items()},
        "rnns.",
    )
    assert_same_bits(found, tuple(pytorch.layers_from_pytorch(m)[0] for m in each))
    assert_near(outputs(config_of("lstm", 3, False, 4), found, xs), rest["ys"], 1e-6)
    with pytest.raises(ValueError, match=r"hidden sizes \[4, 8\].*each layer alone"):
        pytorch.layers_to_pytorch(found)
    order = {f"{n}.weight_ih": normal(n, 16, 3 if n == 0 else 4) for n in range(11)}
    order |= {f"{n}.weight_hh": normal(n, 16, 4) for n in range(11)}
    tenth = pytorch.layers_from_pytorch(order)[10]
    np.testing.assert_array_equal(tenth.w_h.T, order["10.weight_hh"])


def test_layers_of_different_stacks_and_other_cells_are_refused() -> None:
    state = pytorch.layers_to_pytorch(draw_layers("lstm", 1, False, 3, 4))
    with pytest.raises(ValueError, match="belongs to the cell lstm, not gru"):
        pytorch.layers_from_pytorch(state, cell="gru")
    two = (*draw_layers("lstm", 1, False, 3, 4), *draw_layers("lstm", 1, False, 3, 4))
    with pytest.raises(ValueError, match="layer 1 takes inputs of size 3"):
        pytorch.layers_to_pytorch(two)


def test_what_pytorch_has_not_is_not_exported() -> None:
    with pytest.raises(ValueError, match="no counterpart in PyTorch"):
        pytorch.layers_to_pytorch(draw_layers("gru_before", 1, False, 3, 4))
    with pytest.raises(ValueError, match="biases that are not zero"):
        pytorch.layers_to_pytorch(draw_layers("gru_after", 1, False, 3, 4), bias=False)


def our_logits(model: LanguageModel, params: LanguageModelParams, tokens: np.ndarray) -> Any:
    return jax.jit(lambda params, tokens: model.apply(params, None, tokens)[1])(params, tokens)


def draw_model(config: LanguageModelConfig, form: str, tokens: int) -> LanguageModelParams:
    hidden, out, size = config.hidden_size, config.output_size, config.embedding_size
    bias = jnp.asarray(normal(1, tokens))
    output = OutputParams(jnp.asarray(normal(2, out, tokens)), bias)
    return LanguageModelParams(
        None if size is None else jnp.asarray(normal(3, tokens, size)),
        draw_layers(form, config.layers, config.bidirectional, size or tokens, hidden),
        TiedOutputParams(bias) if config.tied else output,
    )


@pytest.mark.usefixtures("float64")
@forms
@pytest.mark.parametrize(
    ("layers", "bidirectional", "tied"), [(1, False, False), (2, False, True), (2, True, False)]
)
def test_a_language_model_of_pytorch_s_has_the_same_logits_here(
    peer: Peer, form: str, layers: int, bidirectional: bool, tied: bool
) -> None:
    options = {"num_layers": layers, "bidirectional": bidirectional}

    def drawn() -> Any:
        return model_of(form, 11, 4 if tied else 3, 4, tied, **options).double()

    def theirs() -> Arrays:
        module = drawn()
        tokens = np.random.default_rng(0).integers(0, 11, (6, 2))
        return {"tokens": tokens, "logits": applied(module, tokens), **state_of(module)}

    state, rest = split_state(peer(str((form, layers, bidirectional, tied)), theirs))
    tokens, expected = rest["tokens"], rest["logits"]
    model, params = pytorch.language_model_from_pytorch(state)
    config = model.config
    assert (config.cell, config.layers) == (form.partition("_")[0], layers)
    assert (config.tied, config.bidirectional) == (tied, bidirectional)
    assert (config.embedding_size, config.hidden_size) == (4 if tied else 3, 4)
    assert model.vocabulary_size == 11
    assert_near(our_logits(model, params, tokens), expected, 1e-12)
    exported = pytorch.language_model_to_pytorch(params)
    assert list(exported) == list(state)
    if peer.is_live:
        again = drawn()
        again.load_state_dict(tensors(exported), strict=True)
        assert_near(applied(again, tokens), expected, 1e-12)


@forms
@pytest.mark.parametrize("entry", ["one-hot", "embedding", "tied"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_our_language_models_come_back_bit_for_bit(
    form: str, layers: int, bidirectional: bool, entry: str
) -> None:
    hidden, tokens = 3, 7
    out = hidden * (2 if bidirectional else 1)
    size = {"one-hot": None, "embedding": 2, "tied": out}[entry]
    config = LanguageModelConfig(
        **vars(config_of(form, layers, bidirectional, hidden)),
        embedding_size=size,
        tied=entry == "tied",
    )
    params = draw_model(config, form, tokens)
    names = pytorch.LanguageModelNames("embed", "lstm", "fc")
    state = pytorch.language_model_to_pytorch(params, names=names)
    model, back = pytorch.language_model_from_pytorch(state, names=names)
    assert model == LanguageModel(config, tokens)
    assert_same_bits(back, params)


def test_an_identity_for_an_encoder_feeds_tokens_one_hot(peer: Peer) -> None:
    params = draw_model(LanguageModelConfig(hidden_size=4), "lstm", 6)
    state = pytorch.language_model_to_pytorch(params, identity_encoder=True)

    def theirs() -> Arrays:
        module = model_of("lstm", 6, 6, 4, tied=False)
        module.load_state_dict(tensors(state), strict=True)
        tokens = np.random.default_rng(0).integers(0, 6, (5, 2))
        return {"tokens": tokens, "logits": applied(module, tokens), **state_of(module)}

    loaded, rest = split_state(peer("", theirs))
    assert_same_bits(state, loaded)
    one_hot = LanguageModel(LanguageModelConfig(hidden_size=4), 6)
    assert_near(our_logits(one_hot, params, rest["tokens"]), rest["logits"], 1e-6)


def model_state(**changes: Any) -> dict[str, Any]:
    config = LanguageModelConfig(hidden_size=4, embedding_size=4)
    params = draw_model(config, "lstm", 6)
    state: dict[str, Any] = pytorch.language_model_to_pytorch(params)
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


def test_a_decoder_without_bias_has_zeros_here() -> None:
    _, params = pytorch.language_model_from_pytorch(model_state(decoder__bias=None))
    np.testing.assert_array_equal(params.output.b, np.zeros(6))


def test_whether_weights_are_tied_can_be_said() -> None:
    state = model_state()
    state["encoder.weight"] = state["decoder.weight"]
    assert pytorch.language_model_from_pytorch(state)[0].config.tied
    model, params = pytorch.language_model_from_pytorch(state, tied=False)
    assert not model.config.tied
    np.testing.assert_array_equal(params.embedding, params.output.w.T)
    with pytest.raises(ValueError, match="not tied"):
        pytorch.language_model_from_pytorch(model_state(), tied=True)


def float32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout__scale": float32(1)}, r"has dropout\.scale; expected names in encoder\., rnn\."),
        ({"encoder__weight": None}, "no one-hot rows of 6 tokens"),
        ({"encoder__weight": float32(7, 4)}, r"expected \(6, 4\)"),
        ({"encoder__bias": float32(4)}, "encoder has bias, which nothing here takes"),
        ({"decoder__weight": None}, "decoder lacks weight"),
        ({"decoder__weight": float32(6, 5)}, r"expected \(6, 4\)"),
        ({"decoder__bias": float32(5)}, r"expected \(6,\)"),
        ({"rnn__weight_ih_l0": None}, r"lacks rnn\.weight_ih_l0"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_words(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pytorch.language_model_from_pytorch(model_state(**changes))


def test_the_imported_stack_s_structure_is_the_library_s() -> None:
    state = pytorch.layers_to_pytorch(draw_layers("gru_after", 1, True, 2, 3))
    (layer,) = pytorch.layers_from_pytorch(state)
    assert isinstance(layer, Directions)
    assert layer.forward.b_hn.shape == (3,)

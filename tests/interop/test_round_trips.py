"""Weights under other names: they come back bit for bit, and what does not fit is told in words."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from core_cases import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import FORMS, RESET_AFTER, draw_layers, draw_model

from lstm_jax.cells import init_lstm, init_mgu, init_mingru
from lstm_jax.interop import (
    LanguageModelNames,
    language_model_from_plain,
    language_model_from_pytorch,
    language_model_to_plain,
    language_model_to_pytorch,
    layer_from_keras,
    layer_to_keras,
    layers_from_keras,
    layers_from_plain,
    layers_from_pytorch,
    layers_to_keras,
    layers_to_plain,
    layers_to_pytorch,
    params_from_linen,
    params_from_nnx,
    params_to_linen,
    params_to_nnx,
)
from lstm_jax.interop.linen_modules import layers_from_variables, variables_from_layers
from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.stack import Directions

Layers = tuple[Any, ...]


class Layout(NamedTuple):
    """One way to name a stack's weights, there and back, and the forms of cell that it has."""

    there: Callable[[Layers], Any]
    back: Callable[[Any], Layers]
    forms: tuple[str, ...] = FORMS
    has_b_hn: bool = True


def each(convert: Callable[[Any], Any]) -> Callable[[Any], Layers]:
    return lambda layers: tuple(map(convert, layers))


LAYOUTS = {
    "pytorch": Layout(layers_to_pytorch, layers_from_pytorch, RESET_AFTER),
    "keras": Layout(layers_to_keras, layers_from_keras),
    "plain": Layout(layers_to_plain, layers_from_plain),
    "linen": Layout(each(params_to_linen), each(params_from_linen), RESET_AFTER),
    "nnx": Layout(each(params_to_nnx), each(params_from_nnx), RESET_AFTER, has_b_hn=False),
    "nnx LSTMCell": Layout(
        each(partial(params_to_nnx, optimized=False)), each(params_from_nnx), ("lstm",)
    ),
    "a Linen module": Layout(variables_from_layers, layers_from_variables),
}


def without_b_hn(layers: Layers) -> Layers:
    """With zeros for what nnx's GRU has not."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf * (getattr(path[-1], "name", "") != "b_hn"), layers
    )


@pytest.mark.parametrize(
    ("layout", "form"), [(name, form) for name in LAYOUTS for form in LAYOUTS[name].forms]
)
@settings(max_examples=6)
@given(
    stack=st.tuples(st.integers(1, 3), st.booleans()),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**31 - 1),
)
def test_layers_come_back_bit_for_bit_and_as_copies(
    layout: str, form: str, stack: tuple[int, bool], sizes: tuple[int, int], seed: int
) -> None:
    there, back, _, has_b_hn = LAYOUTS[layout]
    drawn = draw_layers(form, *stack, *sizes, seed)
    drawn = drawn if has_b_hn else without_b_hn(drawn)
    arrays = there(drawn)
    found = back(arrays)
    for array in jax.tree.leaves(arrays):
        if isinstance(array, np.ndarray):
            array[...] = 7
    assert_same_bits(found, drawn)


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        (name, form)
        for name in ("pytorch", "keras", "plain", "a Linen module")
        for form in (RESET_AFTER if name in ("pytorch", "plain") else FORMS)
    ],
)
def test_layers_without_biases_come_back_without(layout: str, form: str) -> None:
    drawn = draw_layers(form, 2, True, 3, 4, use_bias=False)
    there, back = LAYOUTS[layout].there, LAYOUTS[layout].back
    reset = form.partition("_")[2]
    if reset == "before" or (reset and layout == "keras"):
        back = partial(back, reset=reset)  # type: ignore[call-arg]
    assert_same_bits(back(there(drawn)), drawn)
    params = LanguageModelParams(None, drawn, OutputParams(np.ones((8, 3)), np.ones(3)))
    if layout == "pytorch":
        with jax.enable_x64(True):
            model, _ = language_model_from_pytorch(language_model_to_pytorch(params))
        assert not model.config.use_bias


def test_zeros_are_written_where_the_module_there_has_biases() -> None:
    for form in RESET_AFTER:
        drawn = draw_layers(form, 1, False, 3, 4, use_bias=False)
        state = layers_to_pytorch(drawn, bias=True)
        assert not state["bias_ih_l0"].any() and not state["bias_hh_l0"].any()
        assert not layer_to_keras(drawn[0], use_bias=True)[2].any()
        assert not params_from_linen(params_to_linen(drawn[0])).b.any()


@pytest.mark.parametrize("entry", ["one-hot", "embedding", "tied"])
@pytest.mark.parametrize(
    "stack",
    [("rnn", 1, False), ("lstm", 2, True), ("gru_after", 2, False), ("gru_before", 1, True)],
)
def test_language_models_come_back_bit_for_bit(entry: str, stack: tuple[str, int, bool]) -> None:
    config, params = draw_model(*stack, entry)
    arrays = language_model_to_plain(params)
    assert ("embedding" in arrays, "output/w" in arrays) == (entry != "one-hot", entry != "tied")
    assert_same_bits(language_model_from_plain(arrays), params)
    if config.gru_reset == "before":
        return
    for names in (LanguageModelNames(), LanguageModelNames("embed", "lstm", "fc")):
        state = language_model_to_pytorch(params, names=names)
        model, back = language_model_from_pytorch(state, names=names)
        assert model == LanguageModel(config, 7)
        assert_same_bits(back, params)
        assert_same_bits(layers_from_pytorch(state, f"{names.rnn}."), params.layers)


MODEL: dict[str, Any] = language_model_to_pytorch(draw_model("lstm", 1, False, "embedding")[1])


def changed(arrays: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize("wrapper", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_names_that_training_wraps_and_a_cell_s_are_the_module_s(wrapper: str) -> None:
    state = MODEL
    wrapped = {wrapper.format(name): value for name, value in state.items()}
    expected = language_model_from_pytorch(state)
    own = LanguageModelNames(*map(wrapper.format, LanguageModelNames()))
    for names in (LanguageModelNames(), own):
        model, params = language_model_from_pytorch(wrapped, names=names)
        assert model == expected[0]
        assert_same_bits(params, expected[1])
    for prefix in ("rnn.", wrapper.format("rnn.")):
        assert_same_bits(layers_from_pytorch(wrapped, prefix), expected[1].layers)
    inner = {n[4:]: state[n] for n in state if n.startswith("rnn.")}
    # A cell's names are a layer's without its number.
    of_cell = {n.removesuffix("_l0"): array for n, array in inner.items()}
    for arrays in (inner, of_cell):
        named = {wrapper.format(n): array for n, array in arrays.items()}
        assert_same_bits(layers_from_pytorch(named), expected[1].layers)
    with pytest.raises(ValueError, match="twice, with and without module"):
        language_model_from_pytorch(wrapped | state)


def test_what_a_model_of_pytorchs_leaves_open_is_zeros_or_can_be_said() -> None:
    _, params = language_model_from_pytorch(changed(MODEL, {"decoder.bias": None}))
    np.testing.assert_array_equal(params.output.b, np.zeros(7))
    state = language_model_to_pytorch(draw_model("lstm", 1, False, "tied")[1])
    assert language_model_from_pytorch(state)[0].config.tied
    model, params = language_model_from_pytorch(state, tied=False)
    assert not model.config.tied
    np.testing.assert_array_equal(params.embedding, params.output.w.T)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def kernel(*shape: int, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {"kernel": ones(*shape), **others}


def gates(side: str, *shape: int, **others: np.ndarray) -> dict[str, Any]:
    return {side + gate: kernel(*shape, **others) for gate in "ifgo"}


LSTM, GRU_BEFORE, GRU_AFTER = (
    draw_layers(form, 1, False, 3, 4) for form in ("lstm", "gru_before", "gru_after")
)
PYTORCH, PLAIN = layers_to_pytorch(LSTM), layers_to_plain(LSTM)
TIED = language_model_to_plain(draw_model("gru_before", 1, False, "tied")[1])
NARROW = layers_to_plain(draw_layers("gru_before", 1, False, 3, 4))
TWO_SIZES = (*LSTM, *draw_layers("lstm", 1, False, 4, 5))
TWO_RESETS = (*GRU_AFTER, *draw_layers("gru_before", 1, False, 4, 4))
SOME_BIASES = (*LSTM, *draw_layers("lstm", 1, False, 4, 4, use_bias=False))
TWO_CELLS = (*LSTM, *draw_layers("rnn", 1, False, 4, 4))
TWO_WAYS = (Directions(*LSTM, *LSTM), *draw_layers("lstm", 1, False, 8, 4))
LINEN_GRU, LINEN_RNN = (
    params_to_linen(*draw_layers(form, 1, False, 3, 4)) for form in ("gru_after", "rnn")
)

H = kernel(4, 4)
UNITWISE = (init_mingru(jax.random.key(0), 3, 4),)
PROJECTED = (init_lstm(jax.random.key(0), 3, 6, projection_size=4),)
TWO_PROJECTIONS = (*PROJECTED, *draw_layers("lstm", 1, False, 4, 6))


def of(convert: Callable[[Any], Any], *rows: tuple[Any, str]) -> list[tuple[Any, Any, str]]:
    return [(convert, given, message) for given, message in rows]


def changes_of(convert: Callable[[Any], Any], arrays: Any, *rows: tuple[Any, str]) -> Any:
    return of(convert, *((changed(arrays, change), message) for change, message in rows))


def weights(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [ones(*shape) for shape in shapes]


REFUSED = [
    *changes_of(
        layers_from_pytorch,
        PYTORCH,
        ({"weight_hh_l0": None}, r"lacks weight_hh"),
        ({"bias_hh_l0": None}, r"lacks bias_hh"),
        ({"weight_ih_l0": None}, r"the state lacks weight_ih_l0; it has bias_hh_l0"),
        ({"weight_hr_l0": ones(2, 4)}, r"weight_hr_l0 has shape \(2, 4\); expected \(4, 4\)"),
        ({"a.rnn.weight_ih_l0": ones(2, 4)}, r"prefix such as 'a\.rnn\.'"),
        ({"bias_ih_l0": ones(15)}, r"bias_ih_l0 has shape \(15,\); expected \(16,\)"),
        ({"weight_ih_l0": ones(12, 3)}, r"weight_ih_l0 has shape \(12, 3\); expected \(16, 3"),
        ({"weight_hh_l0": ones(16, 5)}, r"16 wide for a hidden size of 5"),
        ({"weight_hh_l0": ones(16)}, r"expected 2 dimensions"),
        ({"weight_hh_l0": np.ones((16, 4), int)}, r"int64; expected an array of floating-poin"),
        ({"weight_ih_l2": ones(16, 4)}, r"l1 lacks"),
        ({"weight_ih_l0_reverse": ones(16, 3)}, r"l0_reverse lacks weight_hh"),
        ({"bias_ih_l0": np.ones(16)}, r"float64; set jax_enable_x64"),
    ),
    (layers_from_pytorch, {"weight_ih": ones(4, 3)}, "the module lacks weight_hh; it"),
    (
        partial(layers_from_pytorch, prefix="lstm."),
        MODEL,
        r"begins with 'lstm\.'; it has rnn\.weight_ih_l0$",
    ),
    *(
        (convert, given, message)
        for convert in (layers_from_pytorch, language_model_from_pytorch)
        for given, message in (
            (None, r"the state is NoneType; give module\.state_dict\(\)"),
            ({"state_dict": {}}, r"give that: checkpoint\['state_dict'"),
        )
    ),
    (partial(layers_from_pytorch, cell="gru"), PYTORCH, "to the cell lstm, not gru"),
    *of(
        layers_to_pytorch,
        (GRU_BEFORE, "no counterpart in PyTorch"),
        ((*LSTM, *LSTM), "layer 1 takes inputs of size 3"),
        (TWO_SIZES, r"hidden sizes \[4, 5\].*each layer alone"),
        (TWO_PROJECTIONS, r"projections of several.*each layer alone"),
        (TWO_CELLS, r"cells \['lstm', 'rnn'\].*each layer alone"),
        (UNITWISE, "cell is mingru.*rnn, lstm, gru"),
        (SOME_BIASES, "some of the layers have no biases.*alone"),
        (TWO_RESETS, "some of the layers reset before.*alone"),
        (TWO_WAYS, "some of the layers have two directions.*alone"),
    ),
    *(
        (convert, given, rf"the layers are {found}; give a tuple of them: \(params,\)")
        for convert in (layers_to_pytorch, layers_to_keras, layers_to_plain, variables_from_layers)
        for given, found in ((LSTM[0], "LSTMParams"), (None, "NoneType"), ((), "none"))
    ),
    (layers_from_keras, (), "the layers are none"),
    *(
        (convert, given, rf"is {found}; give layer\.get_weights\(\), and to layers_from_keras \[")
        for convert, given, found in (
            (layer_from_keras, {}, "dict"),
            (layers_from_keras, None, "NoneType"),
            (layers_from_keras, weights((3, 16), (4, 16), (16,)), "ndarray"),
        )
    ),
    (layers_to_plain, draw_layers("gru_before", 1, False, 3, 4, use_bias=False), "no plain names"),
    (partial(layers_to_pytorch, bias=False), GRU_AFTER, "biases that are not zero"),
    *changes_of(
        language_model_from_pytorch,
        MODEL,
        ({"dropout.scale": ones(1)}, r"has dropout\.scale; expected names in enco"),
        ({"encoder.weight": None}, "no one-hot rows of 7 tokens"),
        ({"encoder.weight": ones(8, 2)}, r"expected \(7, 2\)"),
        ({"encoder.bias": ones(4)}, "encoder has bias, which nothing here takes"),
        ({"decoder.weight": None}, "decoder lacks weight"),
        ({"decoder.weight": ones(7, 5)}, r"expected \(7, 4\)"),
        ({"decoder.bias": ones(5)}, r"expected \(7,\)"),
        ({"rnn.weight_ih_l0": None}, r"lacks rnn\.weight_ih_l0"),
    ),
    (partial(language_model_from_pytorch, tied=True), MODEL, "not tied"),
    *of(
        layer_from_keras,
        (weights((3, 12)), "has 1 arrays; expected 2 or 3.*layers_from_keras"),
        (
            weights((3, 15), (5, 15), (15,), (5, 24), (6, 24), (24,)),
            r"GRUParams\(w_x=\(3, 15\).* LSTMParams\(w_x=\(5, 24\).*layers_from_keras",
        ),
        (weights((3, 12), (4, 12)), "does not show where its reset gate works"),
        (weights((3, 12), (4, 16), (16,)), r"kernel has shape \(3, 12\); expected \(3, 16\)"),
        (weights((3, 16), (4, 16), (2, 16)), "the bias has shape"),
        (weights((3, 8), (4, 8), (8,)), "8 wide for a hidden size of 4"),
    ),
    *(
        (partial(layer_from_keras, reset=reset), weights((3, 12), (4, 12), bias), message)
        for reset, bias, message in (
            ("after", (12,), "a GRU that resets before"),
            ("before", (2, 12), "a GRU that resets after"),
            ("never", (12,), "choose 'after' or 'before'"),
        )
    ),
    *of(
        partial(layer_to_keras, use_bias=False),
        *((layer, "biases that are not zero") for (layer,) in (LSTM, GRU_BEFORE, GRU_AFTER)),
    ),
    *of(layer_to_keras, (PROJECTED[0], "projection.*Keras lacks"), (UNITWISE[0], "cell is mingru")),
    *(
        (convert, layer, message)
        for convert in (params_to_linen, params_to_nnx)
        for layer, message in (
            (PROJECTED[0], "projection.*Flax lacks"),
            (UNITWISE[0], "cell is mingru"),
            (GRU_BEFORE[0], "no counterpart in Flax"),
        )
    ),
    (params_to_nnx, GRU_AFTER[0], "b_hn that is not zero"),
    (params_to_nnx, init_mgu(jax.random.key(0), 3, 4), "cell is mgu.*rnn, lstm, gru"),
    *of(
        params_from_linen,
        (None, r"the tree is NoneType; give a cell's part of variables\['params'\]"),
        ({"params": LINEN_GRU}, r"has params; expected.*variables\['params'\]"),
        ({"dense_i": kernel(3, 4)}, "has dense_i; expected the names of.*to params_from_nnx"),
        ({"i": kernel(3, 4, bias=ones(5)), "h": H}, r"i/bias has shape \(5,\); expected \(4,\)"),
        ({"i": kernel(3, 4), "h": H}, "i lacks bias"),
        ({"i": ones(3, 4), "h": H}, "i is ndarray; expected"),
        ({"i": {}, "h": H}, "i lacks kernel"),
        (
            gates("i", 3, 4) | gates("h", 4, 5, bias=ones(5)),
            r"hi/kernel has shape \(4, 5\); expected \(4, 4\)",
        ),
        (
            LINEN_GRU | {"ir": kernel(3, 3), "iz": kernel(3, 5)},
            r"ir/kernel has shape \(3, 3\); expected \(3, 4\)",
        ),
        (LINEN_GRU | {"iz": kernel(2, 4)}, r"iz/kernel has shape \(2, 4\); expected \(3, 4\)"),
        (
            {"forward_rnn": LINEN_GRU, "backward_rnn": LINEN_RNN},
            r"GRUParams\(w_x=\(3, 12\).* RNNParams\(w_x=\(3, 4\).*each alone",
        ),
    ),
    *of(
        params_from_nnx,
        (object(), r"the tree is object; give nnx\.state\(cell, nnx\.Param\)"),
        (LINEN_RNN, "has h, i; expected the names of one nnx cell.*to params_from_linen"),
        (
            {"dense_i": kernel(3, 12), "dense_h": kernel(4, 16, bias=ones(16))},
            r"dense_i/kernel has shape \(3, 12\); expected \(3, 16\)",
        ),
    ),
    *changes_of(
        layers_from_plain,
        PLAIN,
        ({"layers/0/w_y": ones(1)}, "'layers/0/w_y' is no plain name"),
        ({"layers/1/b": ones(16)}, "lacks w_h, w_x"),
        ({"layers/0/b_hn": ones(4)}, "has a b_hn, but its shapes are of the cell lstm"),
        ({"layers/0/w_x": ones(3, 12)}, r"w_x has shape \(3, 12\); expected"),
        ({"layers/0/forward/b": ones(16)}, "has forward, which nothing here takes"),
        ({"layers/0/w_x": None}, "lacks w_x; it has b, w_h$"),
        ({"layers/2/b": ones(16)}, "layers lacks 1"),
        ({"layers/0/b": np.ones(16)}, "set jax_enable_x64"),
        (dict.fromkeys(PLAIN), "layers lacks 0; it has nothing"),
    ),
    (layers_to_plain, UNITWISE, "cell is mingru.*rnn, lstm, gru"),
    (language_model_from_plain, {"output/w": ones(2, 3)}, "model lacks output/b"),
    *changes_of(
        language_model_from_plain,
        TIED,
        ({"embedding": None}, "neither embedding nor output/w"),
        ({"embedding": None, "output/w": ones(4, 7)}, "embedding is missing.*no one-hot rows"),
        ({"embedding": ones(7, 3)}, r"embedding has shape \(7, 3\); expected \(7, 4\)"),
        (NARROW | {"embedding": ones(7, 3)}, r"the tied embedding.*\(7, 3\); expected \(7, 4\)"),
        ({"output/w": ones(5, 7)}, r"output/w has shape \(5, 7\); expected \(4, 7\)"),
    ),
    *of(
        layers_from_variables,
        ({"params": {"cell": {}}}, "params lacks layers; it has"),
        ({"layers": {}}, "variables lacks params; it has layers"),
        (object(), "variables is object; give what the module's init returned"),
    ),
]


@pytest.mark.parametrize(("convert", "given", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_words(
    convert: Callable[..., Any], given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        convert(given)
    assert "\n" not in str(refused.value)

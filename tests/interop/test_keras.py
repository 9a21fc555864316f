"""Weights to and from Keras: round trips keep every bit, and Keras's own run agrees.

As it was recorded; where Keras is installed, live with `--slow`.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import (
    FORMS,
    assert_near,
    assert_same_bits,
    config_of,
    draw_layers,
    normal,
    outputs,
    stacks,
)
from recorded import Arrays, Peer

from lstm_jax.interop.keras import (
    layer_from_keras,
    layer_to_keras,
    layers_from_keras,
    layers_to_keras,
)

os.environ["KERAS_BACKEND"] = "jax"
PEERS = ("keras", "jax")

# Of Keras's own `get_weights`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Keras on JAX computes in float32, whatever its layers' dtype.
TOLERANCE = 1e-6
CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
forms = pytest.mark.parametrize("form", FORMS)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


def keras_layer(
    form: str, bidirectional: bool, input_size: int, hidden: int, use_bias: bool = True
) -> Any:
    """A built layer of random weights, biases included."""
    import keras

    cell, _, reset = form.partition("_")
    options: dict[str, Any] = {"reset_after": reset == "after"} if reset else {}
    layer = getattr(keras.layers, CLASSES[cell])(
        hidden, return_sequences=True, use_bias=use_bias, **options
    )
    if bidirectional:
        layer = keras.layers.Bidirectional(layer)
    layer.build((None, None, input_size))
    shapes = [array.shape for array in layer.get_weights()]
    layer.set_weights([0.5 * normal(n, *shape) for n, shape in enumerate(shapes)])
    return layer


def compiled(layer: Any) -> Any:
    """Keras's outputs, time first, as a function of `[T, B, D]`; weights are read at each call."""
    call = jax.jit(layer.stateless_call)

    def run(xs: np.ndarray) -> np.ndarray:
        weights, others = (
            [variable.value for variable in variables]
            for variables in (layer.trainable_variables, layer.non_trainable_variables)
        )
        return np.asarray(call(weights, others, xs.swapaxes(0, 1))[0]).swapaxes(0, 1)

    return run


def recorded_run(layer: Any, xs: np.ndarray) -> Arrays:
    weights = {f"weight {n}": array for n, array in enumerate(layer.get_weights())}
    return {"xs": xs, "ys": compiled(layer)(xs), **weights}


def weights_of(found: Arrays) -> list[np.ndarray]:
    return [array for name, array in found.items() if name.startswith("weight ")]


def summed_biases(form: str, weights: list[np.ndarray]) -> list[np.ndarray]:
    """What of the weights a computation depends on."""
    if form != "gru_after":
        return weights
    parts = []
    for index, array in enumerate(weights):
        is_bias = index % 3 == 2
        z_r, candidate = np.split(array, [array.shape[1] // 3 * 2], axis=1)
        parts += [z_r.sum(axis=0), candidate] if is_bias else [array]
    return parts


@forms
@stacks
@settings(max_examples=4)
@given(sizes=sizes, seed=st.integers(0, 2**31 - 1))
def test_our_layers_come_back_bit_for_bit(
    form: str, layers: int, bidirectional: bool, sizes: tuple[int, int], seed: int
) -> None:
    drawn = draw_layers(form, layers, bidirectional, *sizes, seed)
    assert_same_bits(layers_from_keras(layers_to_keras(drawn)), drawn)


@forms
@pytest.mark.parametrize("bidirectional", [False, True])
def test_keras_s_layer_computes_the_same_before_and_after_the_round_trip(
    peer: Peer, form: str, bidirectional: bool
) -> None:
    size, hidden = 3, 4

    def theirs() -> Arrays:
        return recorded_run(keras_layer(form, bidirectional, size, hidden), normal(1, 5, 2, size))

    run = peer(str((form, bidirectional)), theirs)
    imported = layer_from_keras(weights_of(run))
    found = outputs(config_of(form, 1, bidirectional, hidden), (imported,), run["xs"])
    assert_near(found, run["ys"], TOLERANCE)

    exported = layer_to_keras(imported)
    assert_same_bits(summed_biases(form, exported), summed_biases(form, weights_of(run)))
    if peer.is_live:
        again = keras_layer(form, bidirectional, size, hidden)
        again.set_weights(exported)
        assert_near(compiled(again)(run["xs"]), run["ys"], TOLERANCE)


@pytest.mark.parametrize("form", ["lstm", "gru_after", "gru_before"])
def test_a_layer_without_bias_has_zeros_here_and_goes_back_without(peer: Peer, form: str) -> None:
    def theirs() -> Arrays:
        return recorded_run(keras_layer(form, True, 3, 4, use_bias=False), normal(1, 5, 2, 3))

    run = peer(form, theirs)
    reset = form.partition("_")[2] or None
    imported = layer_from_keras(weights_of(run), reset=reset)
    found = outputs(config_of(form, 1, True, 4), (imported,), run["xs"])
    assert_near(found, run["ys"], TOLERANCE)
    assert_same_bits(layer_to_keras(imported, use_bias=False), weights_of(run))


def float32(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.ones(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (float32((3, 12)), {}, "has 1 arrays; expected 2 or 3"),
        (float32((3, 12), (4, 12)), {}, "does not show where its reset gate works"),
        (float32((3, 12), (4, 12), (12,)), {"reset": "after"}, "a GRU that resets before"),
        (float32((3, 12), (4, 12), (2, 12)), {"reset": "before"}, "a GRU that resets after"),
        (float32((3, 12), (4, 12), (12,)), {"reset": "never"}, "choose 'after' or 'before'"),
        (float32((3, 12), (4, 16), (16,)), {}, r"kernel has shape \(3, 12\); expected \(3, 16\)"),
        (float32((3, 16), (4, 16), (2, 16)), {}, "the bias has shape"),
        (float32((3, 8), (4, 8), (8,)), {}, "8 wide for a hidden size of 4"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_words(
    weights: list[np.ndarray], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layer_from_keras(weights, **options)


def test_biases_are_not_dropped_in_silence() -> None:
    for form in FORMS:
        (layer,) = draw_layers(form, 1, False, 3, 4)
        with pytest.raises(ValueError, match="biases that are not zero"):
            layer_to_keras(layer, use_bias=False)

"""Keras's layers: what they compute is computed here, from `get_weights()` and back.

As it was recorded; where Keras is installed, live with `--slow`. A masked step emits zeros here and
Keras's last output there, so outputs are compared, and weighed in the loss, on real steps.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import FORMS, assert_same_bits, config_of, kernels, with_gradients
from recorded import Arrays, Peer

from lstm_jax import cells
from lstm_jax.interop.keras import layer_from_keras, layer_to_keras
from lstm_jax.stack import Directions

os.environ["KERAS_BACKEND"] = "jax"
PEERS = ("keras", "jax")
# Of Keras's own `get_weights`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-5
CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
# T, B, D, H
SHAPES = ((7, 3, 4, 5), (1, 2, 1, 6))
forms = pytest.mark.parametrize("form", FORMS)


def count_states(form: str, bidirectional: bool) -> int:
    return (2 if form == "lstm" else 1) * (2 if bidirectional else 1)


@cache
def their_layer(
    form: str, bidirectional: bool, shape: tuple[int, ...], use_bias: bool = True
) -> tuple[Any, Any]:
    """A built layer, and its results and their gradients as a function of what they are of."""
    import keras

    _, batch, input_size, hidden = shape
    cell, _, reset = form.partition("_")
    options: dict[str, Any] = {"reset_after": reset == "after"} if reset else {}
    options |= {"return_sequences": True, "return_state": True, "use_bias": use_bias}
    module = getattr(keras.layers, CLASSES[cell])(hidden, **options)
    if bidirectional:
        module = keras.layers.Bidirectional(module)
    states = [np.zeros((batch, hidden), np.float32)] * count_states(form, bidirectional)
    module(np.zeros((batch, 1, input_size), np.float32), initial_state=states)
    others = [variable.value for variable in module.non_trainable_variables]

    @jax.jit
    def results_and_gradients(inputs: Any, mask: Any, cotangents: Any) -> Any:
        def loss(inputs: Any) -> Any:
            weights, states, xs = inputs
            (ys, *finals), _ = module.stateless_call(
                weights, others, xs.swapaxes(0, 1), initial_state=states, mask=mask.T
            )
            results = (finals, ys.swapaxes(0, 1))
            pairs = zip(*map(jax.tree.leaves, (cotangents, results)), strict=True)
            return sum(jnp.vdot(w, r) for w, r in pairs), results

        (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
        return results, gradients

    return module, results_and_gradients


def theirs(
    form: str,
    bidirectional: bool,
    mask: np.ndarray,
    shape: tuple[int, ...] = SHAPES[0],
    seed: int = 0,
    use_bias: bool = True,
) -> Arrays:
    """Keras's values and gradients of a weighted sum of them, and all that they are of."""
    times, batch, input_size, hidden = shape
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    module, their_results = their_layer(form, bidirectional, shape, use_bias)
    weights = [0.5 * normal(*v.shape) for v in module.trainable_variables]
    count = count_states(form, bidirectional)
    states, weight_states = ([normal(batch, hidden) for _ in range(count)] for _ in range(2))
    xs = normal(times, batch, input_size)
    weight_ys = normal(times, batch, hidden * (2 if bidirectional else 1)) * mask[..., None]
    (finals, ys), (dweights, dstates, dxs) = their_results(
        (weights, states, xs), mask, (weight_states, weight_ys)
    )
    found = {"mask": mask, "xs": xs, "weight_ys": weight_ys, "ys": ys, "dxs": dxs}
    for name, arrays in (
        ("weight", weights),
        ("dweight", dweights),
        ("state", states),
        ("dstate", dstates),
        ("weight_state", weight_states),
        ("final", finals),
    ):
        found |= {f"{name} {index}": array for index, array in enumerate(arrays)}
    return found


def of_one_bias(gradient: np.ndarray) -> np.ndarray:
    """Of a bias in two rows that are only added each has the sum's gradient, which counts once."""
    if gradient.ndim == 1 or gradient.shape[0] != 2:  # no size of the kernels is 2
        return gradient
    inside = 2 * gradient.shape[1] // 3
    return np.stack([gradient[0], np.where(np.arange(gradient.shape[1]) < inside, 0, gradient[1])])


def compare(form: str, bidirectional: bool, found: Arrays) -> None:
    """Ours with Keras's: values, gradients, and the weights on their way back."""

    def numbered(name: str) -> list[np.ndarray]:
        return [array for key, array in found.items() if key.rpartition(" ")[0] == name]

    def carry(name: str) -> Any:
        """The one layer's; Keras lists the forward direction's states, then the backward's."""
        kind, states = cells.cell_named(form.partition("_")[0]).carry, numbered(name)
        if not bidirectional:
            return (kind(*states),)
        half = len(states) // 2
        return (Directions(kind(*states[:half]), kind(*states[half:])),)

    mask, xs, weights = (found["mask"], found["xs"], numbered("weight"))
    # Without biases nothing shows where a GRU's reset gate works.
    reset = form.partition("_")[2] or None
    layer = layer_from_keras(weights, reset=reset)
    dlayer = layer_from_keras([*map(of_one_bias, numbered("dweight"))], reset=reset)
    config = config_of(form, 1, bidirectional, numbered("state")[0].shape[1])
    of_results = (carry("weight_state"), found["weight_ys"])
    results, gradients = with_gradients(config, ((layer,), carry("state"), xs), mask, of_results)
    assert_near(results, (carry("final"), found["ys"] * mask[..., None]), TOLERANCE)
    use_bias = len(weights) % 3 == 0
    of_weights = [layers if use_bias else kernels(layers) for layers in (gradients[0], (dlayer,))]
    assert_near(*of_weights, TOLERANCE)
    assert_near(gradients[1:], (carry("dstate"), found["dxs"]), TOLERANCE)
    back = layer_to_keras(layer, use_bias=use_bias)
    assert [array.shape for array in back] == [array.shape for array in weights]
    assert_same_bits(layer_from_keras(back, reset=reset), layer)


def draw_mask(seed: int, padded: bool) -> np.ndarray:
    times, batch = SHAPES[0][:2]
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, times + 1, batch)
    anywhere = rng.random((times, batch)) < 0.6
    return np.arange(times)[:, None] < lengths if padded else anywhere


@forms
@pytest.mark.parametrize(
    ("bidirectional", "shape", "use_bias"),
    [
        (False, SHAPES[0], True),
        (False, SHAPES[1], True),
        (True, SHAPES[0], True),
        (True, SHAPES[0], False),
    ],
)
def test_values_and_gradients_are_kerass(
    peer: Peer, form: str, bidirectional: bool, shape: tuple[int, ...], use_bias: bool
) -> None:
    mask = np.ones(shape[:2], bool)
    their = partial(theirs, form, bidirectional, mask, shape, use_bias=use_bias)
    compare(form, bidirectional, peer(str((form, bidirectional, shape, use_bias)), their))


@forms
@pytest.mark.parametrize(("bidirectional", "padded"), [(False, False), (True, True)])
def test_masked_steps_are_kerass(peer: Peer, form: str, bidirectional: bool, padded: bool) -> None:
    mask = draw_mask(1, padded)
    assert not mask.all()
    found = peer(str((form, padded)), lambda: theirs(form, bidirectional, mask))
    compare(form, bidirectional, found)


@pytest.mark.slow
@forms
@pytest.mark.parametrize("bidirectional", [False, True])
@settings(max_examples=8)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**31 - 1),
    masked=st.sampled_from(["no", "padded", "any"]),
)
def test_any_values_and_gradients_are_kerass(
    form: str, bidirectional: bool, shape: tuple[int, ...], seed: int, masked: str
) -> None:
    pytest.importorskip("keras", reason="Keras, the reference, is not installed")
    mask = np.ones(shape[:2], bool) if masked == "no" else draw_mask(seed, masked == "padded")
    shape = shape if masked == "no" else SHAPES[0]
    compare(form, bidirectional, theirs(form, bidirectional, mask, shape, seed))

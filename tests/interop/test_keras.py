"""Keras's layers: what they compute is computed here, from `get_weights()` and back.

As it was recorded; where Keras is installed, live with `--slow`. A masked step emits zeros here and
Keras's last output there, so outputs are compared, and weighed in the loss, on real steps.
"""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits, flags
from interop_cases import FORMS, config_of, with_gradients
from recorded import Arrays, Peer, of_kind

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


def mask_of(real: str, times: int, batch: int) -> np.ndarray:
    """Of which steps are real: "all", the "first", some "anywhere", or "most"."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, times + 1, batch)
    masks = {
        "all": np.ones((times, batch), bool),
        "first": np.arange(times)[:, None] < lengths,
        "anywhere": rng.random((times, batch)) < 0.6,
        "most": flags(2, (times, batch))["mask"],
    }
    return masks[real]


def theirs(
    form: str,
    bidirectional: bool,
    real: str,
    shape: tuple[int, ...] = SHAPES[0],
    use_bias: bool = True,
    drops: bool = False,
    **more: Any,
) -> Arrays:
    """Keras's values and gradients of a weighted sum of them, and all that they are of.

    With `drops` half of the hidden state is dropped in training, the same half for all gates.
    """
    import keras

    times, batch, input_size, hidden = shape
    mask, rng = mask_of(real, times, batch), np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    cell, _, reset = form.partition("_")
    options: dict[str, Any] = {"reset_after": reset == "after"} if reset else {}
    options |= {"return_sequences": True, "return_state": True, "use_bias": use_bias, **more}
    module = getattr(keras.layers, CLASSES[cell])(hidden, **options)
    scale = 2 * np.random.default_rng(3).integers(0, 2, (batch, hidden)).astype(np.float32)
    if drops:
        module.cell.recurrent_dropout, module.cell.implementation = 0.5, 1
        drawn = scale if cell == "rnn" else [scale] * 4
        module.cell.get_recurrent_dropout_mask = lambda state: drawn
    each = 2 if bidirectional else 1
    count = each * (2 if form == "lstm" else 1)
    if bidirectional:
        module = keras.layers.Bidirectional(module)
    zeros = [np.zeros((batch, hidden), np.float32)] * count
    module(np.zeros((batch, 1, input_size), np.float32), initial_state=zeros)
    others = [variable.value for variable in module.non_trainable_variables]
    weights = [0.5 * normal(*v.shape) for v in module.trainable_variables]
    states, weight_states = ([normal(batch, hidden) for _ in range(count)] for _ in range(2))
    xs = normal(times, batch, input_size)
    weight_ys = normal(times, batch, hidden * each) * mask[..., None]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(inputs: Any) -> Any:
        weights, states, xs = inputs
        (ys, *finals), _ = module.stateless_call(
            weights, others, xs.swapaxes(0, 1), initial_state=states, mask=mask.T, training=drops
        )
        ys = ys.swapaxes(0, 1)
        pairs = zip((*weight_states, weight_ys), (*finals, ys), strict=True)
        return sum(jnp.vdot(w, r) for w, r in pairs), (finals, ys)

    (_, (finals, ys)), (dweights, dstates, dxs) = loss((weights, states, xs))
    found = {"mask": mask, "xs": xs, "weight_ys": weight_ys, "ys": ys, "dxs": dxs}
    found |= {"scale": scale} if drops else {}
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


def compare(form: str, bidirectional: bool, found: Arrays, **activations: Any) -> None:
    """Ours with Keras's: values, gradients, and the weights on their way back."""

    def numbered(kind: str) -> list[np.ndarray]:
        return list(of_kind(found, kind).values())

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
    config = config_of(form, 1, bidirectional, numbered("state")[0].shape[1], **activations)
    of_results, inputs = (carry("weight_state"), found["weight_ys"]), ((layer,), carry("state"), xs)
    scale = found.get("scale")
    results, gradients = with_gradients(config, inputs, mask, of_results, scale)
    assert_near(results, (carry("final"), found["ys"] * mask[..., None]), TOLERANCE)
    assert_near(gradients[0], (dlayer,), TOLERANCE)
    assert_near(gradients[1:], (carry("dstate"), found["dxs"]), TOLERANCE)
    back = layer_to_keras(layer)
    assert [array.shape for array in back] == [array.shape for array in weights]
    assert_same_bits(layer_from_keras(back, reset=reset), layer)


RELU = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
GELU = {"activation": "gelu", "recurrent_activation": "softsign"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("bidirectional", "real", "options"),
    [
        (False, "all", {"shape": SHAPES[1]}),
        (True, "all", {}),
        (True, "all", {"use_bias": False}),
        (True, "all", RELU),
        (True, "all", GELU),
        (False, "anywhere", {}),
        (True, "first", {}),
        (False, "most", {"drops": True}),
    ],
)
def test_values_and_gradients_are_kerass(
    peer: Peer, form: str, bidirectional: bool, real: str, options: dict[str, Any]
) -> None:
    if form == "rnn":
        options = {name: options[name] for name in options if name != "recurrent_activation"}
    case = str((form, bidirectional, real, *options.items()))
    found = peer(case, partial(theirs, form, bidirectional, real, **options))
    assert found["mask"].all() == (real == "all")
    activations = {name: options[name] for name in options if name in RELU}
    compare(form, bidirectional, found, **activations)

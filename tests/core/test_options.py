"""What layers and steps can be told besides weights: no biases, activations, recurrent masks."""

import re
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    DENSE_FORMS,
    B,
    D,
    H,
    T,
    assert_message,
    assert_near,
    assert_same_bits,
    cases,
    draw,
    flags,
    init,
    looped,
    run,
    run_anew,
    run_with_gradients,
    weighted,
)
from core_equations import equations, over_time
from jax import random

import lstm_jax
from lstm_jax import LSTMCarry, cells
from lstm_jax.recurrence import layer
from lstm_jax.stack import StackConfig, init_stack

each_dense_form = cases("form", DENSE_FORMS, "gru_after")


# Biases ------------------------------------------------------------------------------------------


def without_bias(form: str, dtype: Any = jnp.float64) -> Any:
    return init(form, random.key(0), D, H, dtype, use_bias=False)


@cases(
    "form, backend",
    [*((form, "scan") for form in DENSE_FORMS), ("gru_after", "reference")],
    ("gru_after", "scan"),
)
def test_no_biases_are_biases_of_zero_that_have_no_gradient(
    float64: None, form: str, backend: str
) -> None:
    drawn, carry, xs = draw(form, 1, jnp.float64)
    params = without_bias(form)
    zeros = jax.tree.map(jnp.zeros_like, (drawn.b, getattr(drawn, "b_hn", None)))
    names = ("b", "b_hn")[: 1 + hasattr(drawn, "b_hn")]
    filled = type(drawn)(**{**params._asdict(), **dict(zip(names, zeros, strict=False))})
    options = {**flags(1), "backend": backend}
    results, (dparams, *rest) = run_with_gradients(params, carry, xs, **options)
    expected, (dfilled, *rest_expected) = run_with_gradients(filled, carry, xs, **options)
    assert dparams.b is None and getattr(dparams, "b_hn", None) is None
    assert_near((results, rest), (expected, rest_expected), 1e-12)
    assert_near(dparams[:2], dfilled[:2], 1e-12)
    tokens = np.arange(2 * B).reshape(2, B) % D
    found, expected = (run(each, carry, tokens, backend=backend) for each in (params, filled))
    assert_near(found, expected, 1e-12)
    found, expected = (
        looped(cells.cell_of(each).step, each, carry, xs) for each in (params, filled)
    )
    assert_near(found, expected, 1e-12)


@each_dense_form
def test_weights_without_biases_are_drawn_as_with_them(form: str) -> None:
    params, other = without_bias(form, jnp.float32), init(form, random.key(0), D, H)
    assert params.b is None and getattr(params, "b_hn", None) is None
    assert_same_bits(params[:2], other[:2])
    assert_same_bits(cells.zero_carry(params, B), cells.zero_carry(other, B))


def test_a_stack_without_biases_has_none_and_a_mingru_needs_its_own() -> None:
    for reset in ("after", "before"):
        config = StackConfig("gru", layers=2, hidden_size=4, gru_reset=reset, use_bias=False)
        layers = init_stack(random.key(0), config, 3)
        assert [leaf.ndim for leaf in jax.tree.leaves(layers)] == [2] * 4
        assert {layer.resets_before for layer in layers} == {reset == "before"}
    assert_message(lambda: StackConfig("mingru", use_bias=False), "use_bias", "mingru", "leave it")


# Activations -------------------------------------------------------------------------------------


@cases("name", get_args(cells.Activation), "hard_sigmoid", "gelu")
def test_an_activation_is_what_keras_has_by_its_name(float64: None, name: str) -> None:
    params, carry, _ = draw("rnn", 2, jnp.float64)
    xs = 4 * np.random.default_rng(2).standard_normal((B, D))
    found, _ = lstm_jax.rnn_step(params, carry, jnp.asarray(xs), activation=name)
    assert_near(found, equations(params, carry, xs, name), 1e-12)
    assert cells.RNN is cells.cell_of(params)


def test_a_function_is_an_activation_too() -> None:
    params, carry, xs = draw("lstm", 3)
    named = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
    own = {"activation": jax.nn.relu, "recurrent_activation": jax.nn.hard_sigmoid}
    found, expected = (lstm_jax.lstm(params, carry, xs, **options) for options in (own, named))
    assert_near(found, expected, 1e-6)


def test_defaults_by_name_are_the_same_program() -> None:
    params, carry, xs = draw("gru_after", 4)
    named = {"activation": "tanh", "recurrent_activation": "sigmoid", "state_scale": None}
    programs = [
        re.sub(
            "0x[0-9a-f]+", "", str(jax.make_jaxpr(partial(lstm_jax.gru, **each))(params, carry, xs))
        )
        for each in ({}, named, {"hold": None, **named})
    ]
    assert programs[0] == programs[1] == programs[2]


# Options of each step ---------------------------------------------------------------------------


def options_of(form: str, kind: str, seed: int = 0) -> dict[str, Any]:
    """What a layer takes by name; of masks, for all times of `T, B, H`."""
    rng = np.random.default_rng(seed)
    carry = draw(form, seed)[1]
    match kind:
        case "activations":
            gates = {} if form == "rnn" else {"recurrent_activation": "hard_sigmoid"}
            return {"activation": "relu", **gates}
        case "state":
            return {"state_scale": 2.0 * rng.integers(0, 2, (B, H))}
        case "candidate":
            return {"candidate_scale": 2.0 * rng.integers(0, 2, (T, B, H))}
        case "candidate of a sequence":
            return {"candidate_scale": 2.0 * rng.integers(0, 2, (1, B, H))}
        case "zoneout":
            return {"hold": type(carry)(*(rng.random((T, *a.shape)) < 0.5 for a in carry))}
        case "expectation":
            return {
                "hold": type(carry)(*(np.full((1, 1, 1), 0.1 + n / 2) for n in range(len(carry))))
            }
    raise AssertionError(kind)


KINDS = ("activations", "state", "candidate", "candidate of a sequence", "zoneout", "expectation")
OF_FORMS = [(f, k) for f in DENSE_FORMS for k in KINDS if f != "rnn" or "candidate" not in k]
OF_ANY_CELL = [("mingru", "zoneout"), ("diag-lstm", "zoneout")]
A_FEW = [("gru_before", "state"), ("rnn", "activations"), ("lstm", "zoneout")]
"""A kernel that scales the state, one of another activation, and a plain scan."""


def at(options: dict[str, Any], time: slice | int) -> dict[str, Any]:
    """The options for some of the times."""

    def part(name: str, each: Any) -> Any:
        if name not in ("hold", "candidate_scale"):
            return each
        whole = jax.tree.map(lambda a: np.broadcast_to(a, (T, *a.shape[1:])), each)
        return jax.tree.map(lambda a: a[time], whole)

    return {name: part(name, each) for name, each in options.items()}


@cases(
    "form, kind, reverse",
    [(*each, True) for each in [*OF_FORMS, *OF_ANY_CELL]]
    + [("lstm", kind, False) for kind in KINDS],
    *((*each, True) for each in [*A_FEW, OF_ANY_CELL[0]]),
    beyond=("gru_before", "lstm_projected"),
)
def test_a_layer_is_its_equations(float64: None, form: str, kind: str, reverse: bool) -> None:
    params, carry, xs = draw(form, 5, jnp.float64)
    given, options = flags(5), options_of(form, kind)
    expected = over_time(params, carry, xs, **given, reverse=reverse, at=partial(at, options))
    for backend in ("auto", "reference"):
        found = layer(params, carry, xs, **given, **options, reverse=reverse, backend=backend)
        assert_near(found, expected, 1e-10)


@cases("form, kind", [*A_FEW, *((f, "state") for f in ("rnn", "lstm", "gru_after"))], *A_FEW)
def test_gradients_are_the_reference_s(float64: None, form: str, kind: str) -> None:
    inputs, options = draw(form, 6, jnp.float64), flags(6) | options_of(form, kind)
    expected = run_anew(inputs, **options, backend="reference")
    assert_near(run_anew(inputs, **options), expected, 1e-10)


@cases("form, kind", [*A_FEW[:2], *(("lstm", kind) for kind in KINDS)], *A_FEW)
def test_split_at_any_time_it_is_whole(form: str, kind: str) -> None:
    params, carry, xs = draw(form, 7)
    given, options = flags(7), options_of(form, kind)
    whole = layer(params, carry, xs, **given, **options)
    again = layer(params, carry, xs, **given, **options, remat=3)
    ys = []
    for part in (slice(0, 3), slice(3, 4), slice(4, T)):
        each = {name: flag[part] for name, flag in given.items()}
        carry, ys_part = layer(params, carry, xs[part], **each, **at(options, part))
        ys.append(ys_part)
    assert_near((carry, jnp.concatenate(ys)), whole, 1e-6)
    assert_near(again, whole, 1e-6)


@pytest.mark.parametrize(("form", "kind"), A_FEW)
def test_tokens_are_one_hot_rows_with_options_too(float64: None, form: str, kind: str) -> None:
    params, carry, _ = draw(form, 8, jnp.float64)
    tokens = np.random.default_rng(8).integers(0, D, (T, B))
    found, expected = (
        layer(params, carry, inputs, **options_of(form, kind))
        for inputs in (tokens, jnp.eye(D)[tokens])
    )
    assert_near(found, expected, 1e-12)


def test_no_gradient_reaches_a_mask() -> None:
    params, carry, xs = draw("lstm", 10)
    for kind in ("state", "candidate", "expectation"):
        options = jax.tree.map(jnp.asarray, options_of("lstm", kind))
        found = jax.grad(lambda o: weighted(1, lstm_jax.lstm(params, carry, xs, **o)))(options)
        assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_options_that_do_not_fit_are_one_line() -> None:
    params, carry, xs = draw("lstm", 11)
    rnn_params, rnn_carry, _ = draw("rnn", 11)
    unit, unit_carry, _ = draw("mingru", 11)
    hold = LSTMCarry(np.ones((T, B, H)), np.ones((T, B)))
    refused: list[tuple[Any, Any, dict[str, Any], tuple[str, ...]]] = [
        (params, carry, {"activation": "tan"}, ("activation is 'tan'", "hard_sigmoid")),
        (params, carry, {"activaton": "tanh"}, ("lstm has no option 'activaton'", "activation")),
        (rnn_params, rnn_carry, {"recurrent_activation": "relu"}, ("rnn", "it takes activation")),
        (unit, unit_carry, {"activation": "relu"}, ("mingru has no such option; leave it",)),
        (params, carry, {"state_scale": np.ones(H)}, (f"({H},)", f"expected ({B}, {H})")),
        (params, carry, {"candidate_scale": np.ones((2, B, H))}, (f"({T}, {B}, {H}) or (1, ",)),
        (params, carry, {"state_scale": [[1.0] * H] * B}, ("state_scale is list", "an array")),
        (params, carry, {"hold": np.ones((T, B, H))}, ("hold is ndarray", "LSTMCarry")),
        (params, carry, {"hold": hold}, ("hold is LSTMCarry", f"({T}, {B})")),
        (params, carry, {"state_scale": np.ones((B, H)) * 1j}, ("state_scale is complex128",)),
        (params, carry, {"hold": LSTMCarry(*np.ones((2, 1, 1, 1)) * 1j)}, ("hold.h is complex",)),
        (params, carry, {"activation": "relu", "backend": "scan"}, ("'scan'", "choose 'auto'")),
        (unit, unit_carry, {**options_of("mingru", "zoneout"), "backend": "parallel"}, ("hold",)),
    ]
    for each, state, options, parts in refused:
        function = getattr(lstm_jax, cells.cell_of(each).function)
        assert_message(partial(function, each, state, xs, **options), *parts)
    step = partial(lstm_jax.lstm_step, params, carry, xs[0], candidate_scale=np.ones((1, B, H)))
    assert_message(step, "candidate_scale has shape", f"expected ({B}, {H})")

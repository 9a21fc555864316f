"""Stacks: dropout's places, two directions, layers on layers."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    B,
    D,
    H,
    T,
    assert_near,
    assert_same_bits,
    cases,
    flags,
    looped,
    normals_like,
    slow,
    with_gradients,
)
from jax import random

from lstm_jax import cells
from lstm_jax.dropout import dropout_mask
from lstm_jax.recurrence import layer
from lstm_jax.stack import (
    Directions,
    StackConfig,
    init_stack,
    run_stack,
    stack_zero_carry,
    step_stack,
)

one_layer = jax.jit(layer, static_argnames="reverse")


@partial(jax.jit, static_argnums=0)
def run(config: StackConfig, *inputs: Any, **options: Any) -> Any:
    return run_stack(config, *inputs, **options)


def draw(config: StackConfig) -> Any:
    layers = init_stack(random.key(0), config, D)
    return layers, *normals_like(1, (stack_zero_carry(layers, B), jnp.zeros((T, B, D))))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        *(({"cell": cell}, H) for cell in ("lstm", "gru", "rnn")),
        ({"cell": "gru", "bidirectional": True}, 2 * H),
        ({"cell": "lstm", "bidirectional": True, "projection_size": 2}, 2 * 2),
    ],
)
def test_stack_is_its_layers_one_after_another(options: dict[str, Any], size: int) -> None:
    """Both directions side by side, if it has two."""
    config = StackConfig(layers=2, hidden_size=H, **options)
    assert config.output_size == size
    layers, carry, ys = inputs = draw(config)
    finals = []
    for both in zip(layers, carry, strict=True):
        ways = zip(*both, strict=True) if config.bidirectional else [both]
        each = [
            one_layer(*of_way, ys, reverse=bool(way), **flags()) for way, of_way in enumerate(ways)
        ]
        ends, outputs = zip(*each, strict=True)
        finals.append(Directions(*ends) if config.bidirectional else ends[0])
        ys = jnp.concatenate(outputs, axis=-1)
    assert_near(run(config, *inputs, **flags()), (tuple(finals), ys), 1e-6)


TWO_LAYERS: dict[str, Any] = {"cell": "lstm", "layers": 2}
INPUTS_DROPPED = {"cell": "gru", "dropout": 0.5, "dropout_place": "inputs"}


@cases(
    "options, are_tokens, is_bare",
    [
        (TWO_LAYERS, False, False),
        (TWO_LAYERS, True, True),
        (INPUTS_DROPPED, False, False),
        (INPUTS_DROPPED, True, False),
        ({"cell": "lstm", "projection_size": 2, "remat": 3}, False, False),
        ({"cell": "gru", "gru_reset": "before", "unroll": 2}, False, False),
        ({"cell": "diag-lstm"}, False, False),
        ({"cell": "minlstm", "backend": "parallel"}, False, False),
        ({"cell": "lstm", "backend": "reference"}, False, False),
    ],
    (TWO_LAYERS, False, False),
)
def test_directions_at_once_are_those_in_turn(
    float64: None, options: Any, are_tokens: bool, is_bare: bool
) -> None:
    """Values, and gradients of parameters, carry and inputs, with every option of a layer.

    And it is one loop a layer forward, and one backward, where it was two.
    """
    in_turn = StackConfig(hidden_size=H, bidirectional=True, **options)
    at_once = dataclasses.replace(in_turn, directions_at_once=True)
    inputs = jax.tree.map(lambda a: a.astype(jnp.float64), draw(in_turn))
    tokens = jnp.argmax(inputs[2], -1) if are_tokens else None
    key = random.key(3) if in_turn.dropout else None

    def compiled(config: StackConfig) -> Any:
        def of(inputs: Any) -> Any:
            layers, carry, xs = inputs
            given = (None if is_bare else carry, xs if tokens is None else tokens)
            marks = {} if is_bare else flags()
            return run_stack(config, layers, *given, dropout_key=key, **marks)

        return jax.jit(partial(with_gradients, of)).lower(inputs).compile()

    found, expected = map(compiled, (at_once, in_turn))
    assert_near(found(inputs), expected(inputs), 1e-10)
    if options is TWO_LAYERS:
        one, two = (str(each.as_text()).count(f'"n":"{T}"') for each in (found, expected))
        assert (one, two) == (2 * in_turn.layers, 4 * in_turn.layers)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_carry_is_the_zero_carry(bidirectional: bool) -> None:
    config = StackConfig(layers=2, hidden_size=H, bidirectional=bidirectional)
    layers, _, xs = draw(config)
    zero = stack_zero_carry(layers, B)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    assert_same_bits(run(config, layers, None, xs), run(config, layers, zero, xs))


def test_layers_and_directions_are_drawn_apart_by_their_number() -> None:
    """So a layer on top changes none below."""
    deep, shallow = (
        init_stack(random.key(0), StackConfig(layers=n, hidden_size=H, bidirectional=True), D)
        for n in (3, 1)
    )
    w_hs = [np.asarray(p.w_h) for directions in deep for p in directions]
    for index, w_h in enumerate(w_hs):
        assert not any(np.any(w_h == other) for other in w_hs[:index])
    assert [directions.forward.w_x.shape[0] for directions in deep] == [D, 2 * H, 2 * H]
    assert_same_bits(deep[0], shallow[0])


@cases("cell", [cell.name for cell in cells.CELLS], "lstm", "gru", "rnn")
@pytest.mark.parametrize("tokens", [False, True])
def test_steps_in_a_python_loop_are_the_stack(cell: Any, tokens: bool) -> None:
    config = StackConfig(cell=cell, layers=2, hidden_size=H)
    layers, carry, xs = draw(config)
    if tokens:
        xs = np.random.default_rng(1).integers(-1, D + 1, (T, B))
    expected = run(config, layers, carry, xs)
    assert_near(looped(partial(step_stack, config), layers, carry, xs), expected, 1e-6)


# Dropout -----------------------------------------------------------------------------------------


# Of 1, 2, 4, 8 and 16 bits a place.
@pytest.mark.parametrize("rate", [0.5, 0.25, 0.9375, 0.19921875, 0.1, 0.9])
def test_places_are_dropped_by_the_rate_and_independently_of_each_other(rate: float) -> None:
    scale = np.asarray(dropout_mask(random.key(0), rate, (4000, 70), jnp.float32))
    # The rate may be rounded to a multiple of 1/65536.
    np.testing.assert_allclose(np.unique(scale), [0, 1 / (1 - rate)], rtol=2**-16 / (1 - rate))
    # Five standard errors.
    assert abs((scale > 0).mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / scale.size)
    correlations = np.corrcoef((scale > 0).T) - np.eye(70)
    # Six standard errors, for 2,415 pairs of places, many of which share a random word.
    assert np.abs(correlations).max() < 6 / np.sqrt(4000)
    kept = (scale > 0).mean(1)
    assert abs(kept.std() / np.sqrt(rate * (1 - rate) / 70) - 1) < 0.1


def dropped(config: StackConfig, seed: int, xs: Any = None) -> tuple[Any, Any]:
    """The stack's carry and outputs, without and with dropout."""
    layers, carry, dense = draw(config)
    inputs = (layers, carry, dense if xs is None else xs)
    return run(config, *inputs), run(config, *inputs, dropout_key=random.key(seed))


BASE = StackConfig(hidden_size=H, dropout=0.5)
configured = partial(dataclasses.replace, BASE)


def test_between_one_layer_there_is_nothing_to_drop() -> None:
    plain, noisy = dropped(BASE, 1)
    assert_same_bits(noisy, plain)


def test_between_drops_units_of_all_layers_but_the_last() -> None:
    config = configured(layers=2, cell="rnn")
    layers, carry, xs = draw(config)
    # A top layer whose outputs are tanh(its inputs), so that what it saw can be read off.
    top = layers[1]._replace(w_x=jnp.eye(H), w_h=jnp.zeros((H, H)), b=jnp.zeros(H))
    below = layer(layers[0], carry[0], xs)[1]
    _, noisy = run(config, (layers[0], top), carry, xs, dropout_key=random.key(1))
    seen = np.arctanh(np.asarray(noisy))
    kept = seen != 0
    np.testing.assert_allclose(seen[kept], 2 * np.asarray(below)[kept], rtol=1e-4)
    assert 0 < kept.mean() < 1
    assert np.any(kept != kept[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_drops_the_last_layers_too_and_leaves_the_recurrence_alone(layers: int) -> None:
    config = configured(layers=layers, dropout_place="outputs", hidden_size=64)
    (carry, plain), (noisy_carry, noisy) = dropped(config, 1)
    kept = np.asarray(noisy) != 0
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)
    assert np.any(kept != kept[0])
    # The carry is of the undropped states.
    assert_near(noisy_carry[0], carry[0], 1e-6)
    if layers == 1:
        np.testing.assert_allclose(noisy[kept], 2 * plain[kept], rtol=1e-6)


def test_inputs_drops_the_same_features_at_all_times_of_a_sequence() -> None:
    config = configured(dropout_place="inputs")
    layers, carry, xs = draw(config)

    def total(xs: Any) -> Any:
        # Of four features and three rows one key in 256 drops the same of all, as key 1 does.
        _, ys = run_stack(config, layers, carry, xs, dropout_key=random.key(3))
        return (ys * random.normal(random.key(2), ys.shape)).sum()

    reaches = np.asarray(jax.jit(jax.grad(total))(xs)) != 0
    np.testing.assert_array_equal(reaches, np.broadcast_to(reaches[0], reaches.shape))
    assert np.any(reaches[0] != reaches[0, 0])
    assert reaches.any()
    assert not reaches.all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [pytest.param(1, marks=slow), 2])
def test_inputs_drops_tokens_as_features_of_their_one_hot_rows(
    bidirectional: bool, layers: int
) -> None:
    config = configured(dropout_place="inputs", bidirectional=bidirectional, layers=layers)
    tokens = np.random.default_rng(0).integers(0, D, (T, B))
    plain, of_tokens = dropped(config, 1, tokens)
    _, of_rows = dropped(config, 1, np.eye(D, dtype=np.float32)[tokens])
    assert_near(of_tokens, of_rows, 1e-6)
    assert np.any(of_tokens[1] != plain[1])


@pytest.mark.parametrize("place", ["between", "outputs", "inputs"])
def test_dropout_is_its_keys(place: Any) -> None:
    config = configured(layers=2, dropout_place=place)
    plain, noisy = dropped(config, 1)
    assert_same_bits(dropped(config, 1)[1], noisy)
    assert np.any(dropped(config, 2)[1][1] != noisy[1])
    assert np.any(plain[1] != noisy[1])
    # Without a key it is the stack without dropout, and with nothing to drop a key is nothing.
    for found in dropped(dataclasses.replace(config, dropout=0.0), 1):
        assert_same_bits(found, plain)

"""Stacks: dropout's places, two directions, layers on layers."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, assert_same_bits, normals_like
from jax import random

from lstm_jax.recurrence import gru, layer, lstm, rnn
from lstm_jax.stack import (
    Directions,
    StackConfig,
    dropout_mask,
    init_stack,
    run_stack,
    stack_zero_carry,
    step_stack,
)

T, B, D, H = 6, 3, 4, 5
one_layer = jax.jit(layer, static_argnames="reverse")


@partial(jax.jit, static_argnums=0)
def run(config: StackConfig, *inputs: Any, **options: Any) -> Any:
    return run_stack(config, *inputs, **options)


def draw(config: StackConfig, seed: int = 0) -> Any:
    keys = random.split(random.key(seed), 3)
    layers = init_stack(keys[0], config, D)
    carry = normals_like(keys[1], stack_zero_carry(layers, B))
    return layers, carry, random.normal(keys[2], (T, B, D))


def flags() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"mask": rng.random((T, B)) < 0.7, "resets": rng.random((T, B)) < 0.2}


@pytest.mark.parametrize(("cell", "function"), [("lstm", lstm), ("gru", gru), ("rnn", rnn)])
def test_stack_is_its_layers_one_after_another(cell: str, function: Any) -> None:
    config = StackConfig(cell=cell, layers=2, hidden_size=H)
    layers, carry, xs = draw(config)
    function = jax.jit(function)
    first, ys = function(layers[0], carry[0], xs, **flags())
    second, ys = function(layers[1], carry[1], ys, **flags())
    assert_near(run(config, layers, carry, xs, **flags()), ((first, second), ys), 1e-6)


@pytest.mark.parametrize(
    ("options", "size"), [({"cell": "gru"}, H), ({"cell": "lstm", "projection_size": 2}, 2)]
)
def test_bidirectional_is_both_directions_side_by_side(options: dict[str, Any], size: int) -> None:
    config = StackConfig(layers=2, hidden_size=H, bidirectional=True, **options)
    assert config.output_size == 2 * size
    layers, carry, ys = draw(config)
    inputs = (layers, carry, ys)
    finals = []
    for params, before in zip(layers, carry, strict=True):
        forward, forward_ys = one_layer(params.forward, before.forward, ys, **flags())
        backward, backward_ys = one_layer(
            params.backward, before.backward, ys, reverse=True, **flags()
        )
        ys = jnp.concatenate([forward_ys, backward_ys], axis=-1)
        finals.append(Directions(forward, backward))
    assert_near(run(config, *inputs, **flags()), (tuple(finals), ys), 1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_carry_is_the_zero_carry(bidirectional: bool) -> None:
    config = StackConfig(layers=2, hidden_size=H, bidirectional=bidirectional)
    layers, _, xs = draw(config)
    zero = stack_zero_carry(layers, B)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))
    assert_same_bits(run(config, layers, None, xs), run(config, layers, zero, xs))


def test_layers_and_directions_are_drawn_apart() -> None:
    config = StackConfig(layers=3, hidden_size=H, bidirectional=True)
    layers = init_stack(random.key(0), config, D)
    w_hs = [np.asarray(p.w_h) for directions in layers for p in directions]
    for index, w_h in enumerate(w_hs):
        assert not any(np.any(w_h == other) for other in w_hs[:index])
    assert [directions.forward.w_x.shape[0] for directions in layers] == [D, 2 * H, 2 * H]


def test_deeper_stack_begins_with_the_same_layers() -> None:
    """Children's keys are by number, so a layer on top changes none below."""
    shallow = init_stack(random.key(0), StackConfig(layers=1, hidden_size=H), D)
    deep = init_stack(random.key(0), StackConfig(layers=2, hidden_size=H), D)
    assert_same_bits(deep[0], shallow[0])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("tokens", [False, True])
def test_steps_in_a_python_loop_are_the_stack(cell: str, tokens: bool) -> None:
    config = StackConfig(cell=cell, layers=2, hidden_size=H)
    layers, carry, xs = draw(config)
    if tokens:
        xs = random.randint(random.key(1), (T, B), -1, D + 1)
    expected = run(config, layers, carry, xs)
    step = jax.jit(partial(step_stack, config))
    ys = []
    for x in xs:
        carry, y = step(layers, carry, x)
        ys.append(y)
    assert_near((carry, jnp.stack(ys)), expected, 1e-6)


# Dropout -----------------------------------------------------------------------------------------


# Of 1, 2, 4, 8 and 16 bits a place.
RATES = [0.5, 0.25, 0.9375, 0.19921875, 0.1, 0.9]


@pytest.mark.parametrize("rate", RATES)
def test_dropout_keeps_its_share_and_the_mean(rate: float) -> None:
    shape = (100, 100)
    scale = np.asarray(dropout_mask(random.key(0), rate, shape, jnp.float32))
    # The rate may be rounded to a multiple of 1/65536.
    np.testing.assert_allclose(np.unique(scale), [0, 1 / (1 - rate)], rtol=2**-16 / (1 - rate))
    # Five standard errors.
    assert abs((scale > 0).mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / scale.size)


@pytest.mark.parametrize("rate", RATES)
def test_places_are_dropped_independently_of_each_other(rate: float) -> None:
    scale = np.asarray(dropout_mask(random.key(0), rate, (4000, 70), jnp.float32))
    correlations = np.corrcoef((scale > 0).T) - np.eye(70)
    # Six standard errors, for 2,415 pairs of places, many of which share a random word.
    assert np.abs(correlations).max() < 6 / np.sqrt(4000)
    kept = (scale > 0).mean(1)
    assert abs(kept.std() / np.sqrt(rate * (1 - rate) / 70) - 1) < 0.1


def dropped(config: StackConfig, seed: int, xs: Any = None) -> tuple[Any, Any, Any]:
    """The stack's inputs, and its outputs without and with dropout."""
    layers, carry, dense = draw(config)
    xs = dense if xs is None else xs
    _, plain = run(config, layers, carry, xs)
    _, noisy = run(config, layers, carry, xs, dropout_key=random.key(seed))
    return layers, np.asarray(plain), np.asarray(noisy)


BASE = StackConfig(hidden_size=H, dropout=0.5)


def test_between_one_layer_there_is_nothing_to_drop() -> None:
    _, plain, noisy = dropped(BASE, 1)
    np.testing.assert_array_equal(noisy, plain)


def test_between_drops_units_of_all_layers_but_the_last() -> None:
    config = dataclasses.replace(BASE, layers=2, cell="rnn")
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
def test_outputs_drops_the_last_layers_too(layers: int) -> None:
    config = dataclasses.replace(BASE, layers=layers, dropout_place="outputs", hidden_size=64)
    _, plain, noisy = dropped(config, 1)
    kept = noisy != 0
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)
    assert np.any(kept != kept[0])
    if layers == 1:
        np.testing.assert_allclose(noisy[kept], 2 * plain[kept], rtol=1e-6)


def test_outputs_leaves_the_recurrence_alone() -> None:
    """The carry is of the undropped states."""
    config = dataclasses.replace(BASE, dropout_place="outputs")
    layers, carry, xs = draw(config)
    plain, _ = run(config, layers, carry, xs)
    noisy, _ = run(config, layers, carry, xs, dropout_key=random.key(1))
    assert_near(noisy, plain, 1e-6)


def inputs_config(**options: Any) -> StackConfig:
    return dataclasses.replace(BASE, dropout_place="inputs", **options)


def test_inputs_drops_the_same_features_at_all_times_of_a_sequence() -> None:
    config = inputs_config()
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
@pytest.mark.parametrize("layers", [1, 2])
def test_inputs_drops_tokens_as_features_of_their_one_hot_rows(
    bidirectional: bool, layers: int
) -> None:
    config = inputs_config(bidirectional=bidirectional, layers=layers)
    tokens = np.random.default_rng(0).integers(0, D, (T, B))
    _, plain, of_tokens = dropped(config, 1, tokens)
    _, _, of_rows = dropped(config, 1, np.eye(D, dtype=np.float32)[tokens])
    assert_near(of_tokens, of_rows, 1e-6)
    assert np.any(of_tokens != plain)


@pytest.mark.parametrize("place", ["between", "outputs", "inputs"])
def test_dropout_is_its_keys(place: str) -> None:
    config = dataclasses.replace(BASE, layers=2, dropout_place=place)
    _, plain, noisy = dropped(config, 1)
    np.testing.assert_array_equal(dropped(config, 1)[2], noisy)
    assert np.any(dropped(config, 2)[2] != noisy)
    assert np.any(plain != noisy)
    # Without a key it is the stack without dropout.
    layers, carry, xs = draw(config)
    none = dataclasses.replace(config, dropout=0.0)
    np.testing.assert_array_equal(run(none, layers, carry, xs)[1], plain)
    np.testing.assert_array_equal(run(none, layers, carry, xs, dropout_key=random.key(1))[1], plain)

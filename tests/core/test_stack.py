"""Stacks: dropout's places, two directions, layers on layers, and in what order these run."""

import dataclasses
import re
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
    assert_message,
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


def draw(config: StackConfig, times: int = T, dtype: Any = jnp.float32) -> Any:
    """Parameters, a carry and inputs."""
    layers = init_stack(random.key(0), config, D, dtype)
    return layers, *normals_like(1, (stack_zero_carry(layers, B), jnp.zeros((times, B, D), dtype)))


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


# In another order --------------------------------------------------------------------------------


FULL = "carry mask resets"


def compiled(config: StackConfig, inputs: Any, given: str) -> Any:
    """The stack with its gradients, of what `given` names; of dense inputs, if not of tokens."""
    tokens = jnp.argmax(inputs[2], -1)
    marks = {name: each for name, each in flags(7, tokens.shape).items() if name in given}
    key = random.key(3) if config.dropout else None

    def of(inputs: Any) -> Any:
        layers, carry, xs = inputs
        begun, xs = carry if "carry" in given else None, tokens if "tokens" in given else xs
        return run_stack(config, layers, begun, xs, dropout_key=key, **marks)

    return jax.jit(partial(with_gradients, of)).lower(inputs).compile()


AT_ONCE = {"directions_at_once": True}
INPUTS_DROPPED = {"cell": "gru", "dropout": 0.5, "dropout_place": "inputs"}


@cases(
    "change, times, given, options",
    [
        (AT_ONCE, T, FULL, {}),
        (AT_ONCE, T, "tokens", {}),
        (AT_ONCE, T, FULL, INPUTS_DROPPED),
        (AT_ONCE, T, f"{FULL} tokens", INPUTS_DROPPED),
        (AT_ONCE, T, FULL, {"projection_size": 2, "remat": 3}),
        (AT_ONCE, T, FULL, {"cell": "gru", "gru_reset": "before", "unroll": 2}),
        (AT_ONCE, T, FULL, {"cell": "diag-lstm"}),
        (AT_ONCE, T, FULL, {"cell": "minlstm", "backend": "parallel"}),
        (AT_ONCE, T, FULL, {"backend": "reference"}),
        ({"wavefront": 1}, 2, "carry", {"cell": "rnn"}),
        ({"wavefront": 4}, 12, FULL, {"dropout": 0.5}),
        (
            {"wavefront": 5}, 13, "carry tokens",
            {"dropout": 0.5, "dropout_place": "outputs", "remat": 4},
        ),
        ({"wavefront": 3}, 11, "carry mask", {**INPUTS_DROPPED, "layers": 3, "remat": 5}),
        ({"wavefront": 2}, 7, "carry resets", {"cell": "gru", "gru_reset": "before", "unroll": 2}),
        (
            {"wavefront": 2}, 9, f"{FULL} tokens",
            {**INPUTS_DROPPED, "cell": "lstm", "projection_size": 2, "layers": 4},
        ),
    ],
    (AT_ONCE, T, FULL, {}),
)  # fmt: skip
def test_directions_at_once_and_layers_side_by_side_are_those_in_turn(
    float64: None, change: dict[str, Any], times: int, given: str, options: dict[str, Any]
) -> None:
    """Values and gradients, whether K divides T or not, and with the same dropout.

    And directions at once are one loop a layer forward, and one backward, where it was two.
    """
    both = {"bidirectional": change is AT_ONCE}
    in_turn = StackConfig(**{"layers": 2, "hidden_size": H} | both | options)
    inputs = draw(in_turn, times, jnp.float64)
    found, expected = (
        compiled(config, inputs, given)
        for config in (dataclasses.replace(in_turn, **change), in_turn)
    )
    assert_near(found(inputs), expected(inputs), 1e-10)
    if change is AT_ONCE and not options:
        one, two = (str(each.as_text()).count(f'"n":"{T}"') for each in (found, expected))
        assert (one, two) == (2 * in_turn.layers, 4 * in_turn.layers)


def test_a_wavefront_s_loops_take_k_steps_more_than_one_layers() -> None:
    """Forward and backward: the lower alone, both in chunks, the upper alone; 24 + 4 of 48."""
    in_turn = StackConfig(cell="rnn", layers=2, hidden_size=H)
    inputs = draw(in_turn, 24)
    ahead = dataclasses.replace(in_turn, wavefront=4)
    trips = []
    for config in (in_turn, ahead):
        loops = re.findall(
            r'op_name="[^"]*jvp\(.*"n":"(\d+)"', compiled(config, inputs, "carry").as_text()
        )
        trips.append(sorted(map(int, loops)))
    assert trips == [[24] * 4, [4] * 6 + [5] * 2]


def test_a_wavefront_as_long_as_the_sequence_is_the_same_program() -> None:
    in_turn = StackConfig(layers=2, hidden_size=H)
    programs = {
        jax.jit(partial(run_stack, config)).lower(*draw(config, 6)).as_text()
        for config in (in_turn, dataclasses.replace(in_turn, wavefront=6))
    }
    assert len(programs) == 1


def test_a_wavefront_of_layers_of_unlike_sizes_is_refused() -> None:
    config = StackConfig(layers=2, hidden_size=H, wavefront=2)
    layers, _, xs = draw(config, 6)
    wider = init_stack(random.key(0), StackConfig(hidden_size=H + 1), H)
    refused = partial(run_stack, config, (layers[0], *wider), None, xs)
    assert_message(refused, "wavefront runs two layers side by side", "use layers of one size")
    of_other_inputs = init_stack(random.key(0), StackConfig(hidden_size=H), H + 2)
    refused = partial(run_stack, config, (layers[0], *of_other_inputs), None, xs)
    assert_message(refused, "the upper layer's input", f"w_x has {H + 2} rows")


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

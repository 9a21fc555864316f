"""Recurrent dropout of stacks and models: what masks depend on, how often, and nothing else."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import B, D, assert_near, assert_same_bits, cases, draw, init
from jax import random

from lstm_jax import cells
from lstm_jax.recurrence import layer
from lstm_jax.recurrent_dropout import RecurrentDropout
from lstm_jax.stack import StackConfig, init_stack, run_stack, stack_zero_carry, step_stack

DROPPING = [("state", "lstm"), ("candidate", "gru"), ("zoneout", "lstm"), ("zoneout", "mingru")]
dropping = cases("kind, cell", DROPPING, ("zoneout", "lstm"), beyond=["mingru"])


def stack(kind: str, cell: str, rate: float = 0.5, **options: Any) -> tuple[StackConfig, Any, Any]:
    """A config with this recurrent dropout, its parameters, and inputs."""
    config = StackConfig(
        cell,
        layers=2,
        hidden_size=8,
        recurrent_dropout=rate,
        recurrent_dropout_kind=kind,
        **options,
    )
    return config, init_stack(random.key(1), config, D), draw("lstm", 12)[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cell", "bidirectional"),
    [
        ("state", "lstm", True),
        ("candidate", "gru", False),
        ("zoneout", "lstm", True),
        ("zoneout", "mingru", False),
    ],
)
def test_masks_depend_on_key_lane_and_time_alone(kind: str, cell: str, bidirectional: bool) -> None:
    config, layers, xs = stack(kind, cell, bidirectional=bidirectional)
    keys = random.split(random.key(3), B)
    _, whole = run_stack(config, layers, None, xs, dropout_key=keys)
    _, lane = run_stack(config, layers, None, xs[:, 1:2], dropout_key=keys[1:2])
    assert_near(lane, whole[:, 1:2], 1e-6)
    others = random.split(random.key(4), B)
    _, other = run_stack(config, layers, None, xs, dropout_key=others)
    assert not np.allclose(other, whole)
    if bidirectional:
        at_once = dataclasses.replace(config, directions_at_once=True)
        assert_near(run_stack(at_once, layers, None, xs, dropout_key=keys)[1], whole, 1e-6)
    else:
        _, first = run_stack(config, layers, None, xs[:5], dropout_key=keys)
        assert_near(first, whole[:5], 1e-6)


def test_masks_are_zero_as_often_as_said_and_scaled() -> None:
    params = jax.eval_shape(lambda: init("lstm", random.key(0), D, 512))
    times = jnp.arange(20)
    for kind, expected in (("state", (8, 512)), ("candidate", (20, 8, 512))):
        (scale,) = (
            RecurrentDropout(kind, 0.25, None).masks(random.key(0), params, times, 8).values()
        )
        assert scale.shape == expected
        values, counts = np.unique(scale, return_counts=True)
        np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
        assert abs(counts[0] / scale.size - 0.25) < 0.03
    hold = RecurrentDropout("zoneout", 0.05, 0.5).masks(random.key(0), params, times, 8)["hold"]
    for share, found in ((0.05, hold.h), (0.5, hold.c)):
        assert found.dtype == bool and abs(np.mean(found) - share) < 0.01
    assert not np.array_equal(hold.c[0], hold.c[1])


@dropping
def test_outside_training_nothing_is_drawn(float64: None, kind: str, cell: str) -> None:
    """Zoneout holds its share of each unit there; the others are as if they were off."""
    config, layers, xs = stack(kind, cell, 0.25)
    off = dataclasses.replace(config, recurrent_dropout=0.0)
    carry, ys = run_stack(config, layers, None, xs)
    after, steps = stack_zero_carry(layers, B), []
    for x in xs:
        after, y = step_stack(config, layers, after, x)
        steps.append(y)
    assert_near((after, jnp.stack(steps)), (carry, ys), 1e-6)
    if kind != "zoneout":
        assert_same_bits((carry, ys), run_stack(off, layers, None, xs))
        return
    inputs = xs
    for params in layers:
        carry = cells.zero_carry(params, B)
        hold = type(carry)(*[np.full((1, 1, 1), 0.25)] * len(carry))
        _, inputs = layer(params, carry, inputs, hold=hold)
    assert_near(ys, inputs, 1e-6)
    assert not np.allclose(ys, run_stack(off, layers, None, xs)[1])


def test_off_is_the_program_without() -> None:
    config, layers, xs = stack("zoneout", "lstm", 0.0)
    programs = [
        re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(
            lambda xs: run_stack(each, layers, None, xs, dropout_key=random.key(0))  # noqa: B023
        )(xs)))
        for each in (config, StackConfig("lstm", layers=2, hidden_size=8))
    ]  # fmt: skip
    assert programs[0] == programs[1]

"""Learning-rate schedules, and Adam under clipping."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.systems.base import OptimizerConfig
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer

STEPS: dict[str, Any] = {"decay_steps": 10, "decay_rate": 0.5}


@pytest.mark.parametrize(
    ("options", "total_steps", "rates"),
    [
        ({}, 10, {0: 1, 5: 1, 99: 1}),
        ({"schedule": "cosine", "final_share": 0.1}, 100, {0: 1, 50: 0.55, 100: 0.1, 200: 0.1}),
        ({"schedule": "step", **STEPS}, 100, {0: 1, 9: 1, 10: 0.5, 25: 0.25}),
        ({"schedule": "exponential", **STEPS}, 100, {0: 1, 5: 0.5**0.5, 10: 0.5, 20: 0.25}),
        # The schedule begins after a linear rise.
        ({"schedule": "cosine", "warmup_steps": 20}, 120, {0: 0, 10: 0.5, 20: 1, 70: 0.5, 120: 0}),
    ],
)
def test_learning_rates(options: Any, total_steps: int, rates: dict[int, float]) -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, **options), total_steps)
    found = [schedule(jnp.int32(step)) for step in rates]
    np.testing.assert_allclose(found, 2 * np.array([*rates.values()]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_first_update_is_adam_s_on_clipped_gradients(clip_norm: float | None) -> None:
    config = OptimizerConfig(learning_rate=0.1, clip_norm=clip_norm, epsilon=0.5)
    optimizer = make_optimizer(config, learning_rate_schedule(config, 1))
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    scale = 1.0 if clip_norm is None else clip_norm / 5.0
    expected = jax.tree.map(lambda g: -0.1 * scale * g / (abs(scale * g) + 0.5), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_clipping_or_not_leaves_the_optimizer_state_s_structure() -> None:
    params = {"a": jnp.zeros(2)}
    states = [
        make_optimizer(config, learning_rate_schedule(config, 1)).init(params)
        for config in (OptimizerConfig(clip_norm=None), OptimizerConfig(clip_norm=1.0))
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


class Params(NamedTuple):
    learnt: Any
    vectors: Any
    absent: Any = None


def test_what_is_frozen_stays_as_it_is_and_nothing_is_kept_of_it() -> None:
    config = OptimizerConfig(learning_rate=0.1, clip_norm=1.0)
    schedule = learning_rate_schedule(config, 1)
    params = Params(jnp.array([3.0, 4.0]), jnp.full((5, 7), 1e6))
    optimizer = make_optimizer(config, schedule, ("vectors",))
    state = optimizer.init(params)
    assert not any(leaf.shape == (5, 7) for leaf in jax.tree.leaves(state))
    updates, _ = optimizer.update(params, state, params)
    np.testing.assert_array_equal(updates.vectors, 0)
    # Nor does it count for the norm that the others are clipped to.
    alone, rest = make_optimizer(config, schedule), params._replace(vectors=None)
    expected, _ = alone.update(rest, alone.init(rest), rest)
    np.testing.assert_array_equal(updates.learnt, expected.learnt)

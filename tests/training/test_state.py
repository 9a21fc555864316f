"""The training step: epochs, evaluation, steps that are not finite; learning rates and Adam."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random
from run_cases import unequal
from tasks import config, task

from lstm_jax.systems.base import OptimizerConfig, Predictions
from lstm_jax.training.optimizer import (
    averaged,
    averaging,
    changes_of_state,
    learning_rate_schedule,
    make_optimizer,
)
from lstm_jax.training.state import train_step
from lstm_jax.training.task import Task, first_state


def batch_of(the_task: Task, number: int) -> Any:
    system: Any = the_task.system
    return tuple(map(jnp.asarray, system.corpus.training.batch(number)))


def steps(the_task: Task, state: Any, number: int) -> tuple[Any, Any]:
    rows, found = the_task.system.feed()(0), []
    for _ in range(number):
        state, metrics = train_step(the_task.program, state, rows)
        found.append(metrics)
    return state, jax.tree.map(lambda *each: np.array(each), *found)


def test_one_program_serves_all_steps() -> None:
    the_task = task(config())
    state, _ = steps(the_task, first_state(the_task), 1)
    programs = train_step._cache_size()
    steps(the_task, state, the_task.program.batches)
    assert train_step._cache_size() == programs


@pytest.mark.slow
def test_the_step_is_gradient_clipping_and_adam_written_out() -> None:
    the_task = task(config(model=dataclasses.replace(config().model, dropout=0.0)))
    state = first_state(the_task)
    model, batch = the_task.system.model, batch_of(the_task, 0)

    def loss(params: Any) -> jax.Array:
        _, logits = model.apply(params, None, batch[0])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return nll.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
    updates, _ = the_task.program.optimizer.update(gradients, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    after, metrics = steps(the_task, state, 1)
    np.testing.assert_allclose(metrics.loss[0], value, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm[0], optax.tree.norm(gradients), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_step_teaches_the_weights_that_it_does_not_drop_and_the_next_step_others() -> None:
    sgd = OptimizerConfig(method="sgd", learning_rate=1.0, clip_norm=None)
    the_task = task(config(weight_drop=0.25, optimizer=sgd))
    state = first_state(the_task)
    layers, taught = jax.tree.map(np.array, state.params.layers), list[Any]()
    for _ in range(2):
        state, _ = steps(the_task, state, 1)
        before, layers = layers, jax.tree.map(np.array, state.params.layers)
        assert all(
            (old.w_x != new.w_x).all() for old, new in zip(before[1:], layers[1:], strict=True)
        )
        taught.append([old.w_h != new.w_h for old, new in zip(before, layers, strict=True)])
        share = np.mean(taught[-1])
        assert abs(share - 0.75) < 5 * (0.75 * 0.25 / np.size(taught[-1])) ** 0.5
    assert 0.5 < np.mean(np.equal(*taught)) < 0.75


def test_dropout_is_another_at_each_step_and_the_same_in_each_run() -> None:
    the_task = task(config())
    assert the_task.config.model.dropout  # type: ignore[attr-defined]

    def loss(step: int) -> float:
        state = dataclasses.replace(first_state(the_task), step=jnp.int32(step))
        return float(steps(the_task, state, 1)[1].loss[0])

    first, again, *others = map(loss, (0, 0, 1, 2))
    assert first == again
    assert len({first, *others}) == 3


def test_the_carry_is_kept_between_batches_and_zeroed_where_an_epoch_begins() -> None:
    the_task = task(config(model=dataclasses.replace(config().model, dropout=0.0)))
    batches = the_task.program.batches
    state, metrics = steps(the_task, first_state(the_task), batches + 1)
    assert int(state.batch) == 1
    assert int(state.step) == batches + 1
    before, _ = steps(the_task, first_state(the_task), batches)
    tokens, targets = batch_of(the_task, 0)
    token_sums = jax.jit(the_task.system.model.token_sums)
    fresh, _ = token_sums(before.params, None, tokens, targets)
    np.testing.assert_allclose(metrics.loss[batches], fresh.loss / fresh.weight, rtol=1e-6)
    kept, _ = steps(the_task, first_state(the_task), 1)
    second = batch_of(the_task, 1)
    carried, _ = token_sums(kept.params, kept.carry, *second)
    np.testing.assert_allclose(metrics.loss[1], carried.loss / carried.weight, rtol=1e-6)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_step_that_is_not_finite_changes_no_parameter(devices: int, poison: str) -> None:
    """On one device, and where each of several has a part of the state."""
    the_task = task(config(devices=devices, shard_state="none" if devices == 1 else "all"))
    state, _ = steps(the_task, first_state(the_task), 2)
    if poison == "loss":
        bad = state.params.output.b.at[0].set(jnp.nan)
        output = state.params.output._replace(b=bad)
        state = dataclasses.replace(state, params=state.params._replace(output=output))
    else:  # finite logits whose gradient overflows
        carry = jax.tree.map(lambda c: c.at[0].set(jnp.inf), state.carry)
        state = dataclasses.replace(state, carry=carry)
    before = jax.tree.map(jnp.copy, state)
    after, metrics = steps(the_task, state, 1)
    assert not np.isfinite(metrics.loss[0] + metrics.grad_norm[0])
    for name in ("params", "opt_state", "carry", "key"):
        assert unequal(getattr(after, name), getattr(before, name)) == []
    assert (int(after.step), int(after.batch), int(after.skipped)) == (3, 3, 1)


def test_a_carry_is_zeroed_lane_by_lane_whole_or_not_at_all() -> None:
    """And in training alone: an evaluation hands on every carry."""
    rate, size = 0.25, 400
    settings = config(zero_carry_rate=rate, batch_size=size, sequence_length=4)
    objective = task(settings).system.objective
    params = objective.init(random.key(0))
    before = jax.tree.map(jnp.ones_like, objective.zero_carry(params, size))
    data = Predictions(*jnp.zeros((2, 1, size), int), mask=jnp.zeros((1, size), bool))

    def after(key: jax.Array | None) -> Any:
        """A batch of padding leaves the carry as it was given to the model."""
        return objective.sums(params, before, data, jnp.int32(0), key)[1]

    leaves_LBH = np.array(jax.tree.leaves(after(random.key(1))))
    is_zeroed_B = leaves_LBH[0, :, 0] == 0
    assert (leaves_LBH == ~is_zeroed_B[:, None]).all()
    assert abs(is_zeroed_B.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / size)
    assert unequal(after(None), before) == []


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


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_weights_decay_apart_from_clipping_and_means(method: Any) -> None:
    """What comes on top of an update is the learning rate times the decay times the weight."""
    plain = OptimizerConfig(method=method, learning_rate=0.1, clip_norm=1.0)
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    found = []
    for settings in (plain, dataclasses.replace(plain, weight_decay=0.25)):
        optimizer = make_optimizer(settings, learning_rate_schedule(settings, 1))
        found.append(optimizer.update(params, optimizer.init(params), params)[0])
    decayed = jax.tree.map(lambda update, w: update - 0.1 * 0.25 * w, found[0], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[1], decayed)
    if method == "sgd":
        np.testing.assert_allclose(found[0]["b"], -0.1 * 4 / 5, rtol=1e-6)


@pytest.mark.parametrize("frozen", [(), ("vectors",)])
def test_weights_are_averaged_once_that_begins_and_are_the_last_until_then(frozen: Any) -> None:
    config = OptimizerConfig(method="sgd", learning_rate=0.5, clip_norm=None, average_after=1)
    params = Params(jnp.array([3.0, 4.0]), jnp.array(5.0))
    optimizer = make_optimizer(config, learning_rate_schedule(config, 1), frozen)
    state, update, weights = optimizer.init(params), jax.jit(optimizer.update), list[Any]()
    jax.tree.map(np.testing.assert_array_equal, averaged(state, None), params)
    for step in range(8):
        if step >= 3:
            state = averaging(state)  # which begins but once
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        weights.append(params)
        mean = jax.tree.map(lambda *each: np.mean(each, axis=0), *(weights[3:] or weights[-1:]))
        found = averaged(state, None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, mean)


OTHERS: dict[str, tuple[Any, ...]] = {
    "method": ("adam", "sgd"), "weight_decay": (0.0, 0.1, 0.2), "average_after": (0, 1, 2),
    "clip_norm": (None, 1.0), "schedule": ("constant", "cosine"), "warmup_steps": (0, 3),
}  # fmt: skip


def test_settings_that_change_the_optimizer_state_s_structure_are_known() -> None:
    """Whatever else is changed with them."""
    choices = itertools.product(*OTHERS.values())
    configs = [OptimizerConfig(**dict(zip(OTHERS, each, strict=True))) for each in choices]
    optimizers = [make_optimizer(each, learning_rate_schedule(each, 9)) for each in configs]
    structures = [jax.tree.structure(each.init({"a": np.zeros(2)})) for each in optimizers]
    known = list(zip(configs, structures, strict=True))
    for (old, before), (new, after) in itertools.product(known[::5], known[::7]):
        assert bool(changes_of_state(old, new)) == (before != after)


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

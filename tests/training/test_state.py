"""The training step: non-finite steps, epochs, evaluation, devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random
from tasks import assert_same_bits, config, task

from lstm_jax.models import LanguageModel
from lstm_jax.systems.base import Predictions
from lstm_jax.systems.corpus import Corpus
from lstm_jax.systems.language import LanguageObjective, LanguageSystem
from lstm_jax.text import Lanes, heldout_split
from lstm_jax.training.state import evaluate, train_step
from lstm_jax.training.task import Task, first_state


def corpus_of(the_task: Task) -> Corpus:
    assert isinstance(the_task.system, LanguageSystem)
    return the_task.system.corpus


def model_of(the_task: Task) -> LanguageModel:
    return LanguageModel(config().model, len(the_task.system.vocabulary))


def batch_of(the_task: Task, number: int) -> Any:
    training = corpus_of(the_task).training
    assert isinstance(training, Lanes)
    return tuple(map(jnp.asarray, training.batch(number)))


def steps(the_task: Task, state: Any, number: int) -> tuple[Any, Any]:
    feed = the_task.system.feed()
    rows = feed(0)
    found = []
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
    model, batch = model_of(the_task), batch_of(the_task, 0)

    def loss(params: Any) -> jax.Array:
        _, logits = model.apply(params, None, jnp.asarray(batch[0]))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch[1]))
        return nll.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
    updates, _ = the_task.program.optimizer.update(gradients, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    after, metrics = steps(the_task, state, 1)
    np.testing.assert_allclose(metrics.loss[0], value, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm[0], optax.tree.norm(gradients), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_carry_is_kept_between_batches_and_zeroed_where_an_epoch_begins() -> None:
    the_task = task(config(model=dataclasses.replace(config().model, dropout=0.0)))
    batches = the_task.program.batches
    state, metrics = steps(the_task, first_state(the_task), batches + 1)
    assert int(state.batch) == 1
    assert int(state.step) == batches + 1
    before, _ = steps(the_task, first_state(the_task), batches)
    tokens, targets = batch_of(the_task, 0)
    token_sums = jax.jit(model_of(the_task).token_sums)
    fresh, _ = token_sums(before.params, None, tokens, targets)
    np.testing.assert_allclose(metrics.loss[batches], fresh.loss / fresh.weight, rtol=1e-6)
    kept, _ = steps(the_task, first_state(the_task), 1)
    second = batch_of(the_task, 1)
    carried, _ = token_sums(kept.params, kept.carry, *second)
    np.testing.assert_allclose(metrics.loss[1], carried.loss / carried.weight, rtol=1e-6)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_parameter(poison: str) -> None:
    the_task = task(config())
    state, _ = steps(the_task, first_state(the_task), 2)
    if poison == "loss":
        bad = state.params.output.b.at[0].set(jnp.nan)
    else:  # finite logits whose gradient overflows
        bad = state.params.output.b
        carry = jax.tree.map(lambda c: c.at[0].set(jnp.inf), state.carry)
        state = dataclasses.replace(state, carry=carry)
    output = state.params.output._replace(b=bad)
    state = dataclasses.replace(state, params=state.params._replace(output=output))
    before = jax.tree.map(lambda a: a.copy(), state)
    after, metrics = steps(the_task, state, 1)
    assert not np.isfinite(metrics.loss[0] + metrics.grad_norm[0])
    for name in ("params", "opt_state", "carry", "key"):
        assert_same_bits(getattr(after, name), getattr(before, name))
    assert (int(after.step), int(after.batch), int(after.skipped)) == (3, 3, 1)


def test_evaluation_counts_every_held_out_token_once() -> None:
    settings = config()
    the_task = task(settings)
    state, _ = steps(the_task, first_state(the_task), 5)
    corpus, system = corpus_of(the_task), the_task.system
    heldout = corpus.heldout
    assert heldout is not None
    model = model_of(the_task)
    found = evaluate(system.objective, state.params, system.heldout(), system.heldout_batch_size)
    sums = found[""]
    ids = corpus.vocabulary.encode(corpus.text)
    _, held = heldout_split(ids, settings.heldout_share)
    assert float(sums.weight) == len(held)
    total, apply = 0.0, jax.jit(model.apply)
    for lane in range(heldout.inputs.shape[1]):
        real = heldout.mask[:, lane]
        tokens = jnp.asarray(heldout.inputs[real, lane][:, None])
        targets = jnp.asarray(heldout.targets[real, lane][:, None])
        # The lane's context goes through the model and is not counted.
        counted = slice(settings.sequence_length, None)
        _, logits = apply(state.params, None, tokens)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits[counted], targets[counted])
        total += float(nll.sum())
    np.testing.assert_allclose(float(sums.loss), total, rtol=1e-5)


def test_a_carry_is_zeroed_lane_by_lane_whole_or_not_at_all() -> None:
    """And in training alone: an evaluation hands on every carry."""
    rate, size = 0.25, 400
    objective = task(
        config(zero_carry_rate=rate, batch_size=size, sequence_length=4)
    ).system.objective
    assert isinstance(objective, LanguageObjective)
    params = objective.init(random.key(0))
    before = jax.tree.map(jnp.ones_like, objective.zero_carry(params, size))
    data = Predictions(*jnp.zeros((2, 1, size), int), mask=jnp.zeros((1, size), bool))

    def after(key: jax.Array | None) -> Any:
        """A batch of padding leaves the carry as it was given to the model."""
        return objective.sums(params, before, data, jnp.int32(0), key)[1]

    leaves_LBH = np.array(jax.tree.leaves(after(random.key(1))))
    is_zeroed_B = leaves_LBH[0, :, 0] == 0
    np.testing.assert_array_equal(
        leaves_LBH, np.broadcast_to(~is_zeroed_B[:, None], leaves_LBH.shape)
    )
    assert abs(is_zeroed_B.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / size)
    assert_same_bits(after(None), before)


def test_an_evaluation_is_given_up_before_the_next_batch() -> None:
    the_task = task(config())
    params, system = first_state(the_task).params, the_task.system
    batches, size = system.heldout(), system.heldout_batch_size
    answers = iter([False, False, True])
    assert evaluate(system.objective, params, batches, size, lambda: next(answers)) == {}
    assert len([*batches]) == len([*system.heldout()]) - 3 > 0


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    the_task = task(config(sequence_length=8))
    one, first = steps(the_task, first_state(the_task), 3)
    other, second = steps(the_task, first_state(the_task), 3)
    assert_same_bits(one, other)
    keys = [random.key_data(random.fold_in(one.key, step)) for step in range(3)]
    assert len({tuple(key.tolist()) for key in keys}) == 3
    np.testing.assert_array_equal(first.loss, second.loss)

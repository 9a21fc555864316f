"""A state of which each device keeps a part is the whole state: losses, evaluation, bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_same_bits, config, run, task

from lstm_jax.models import LanguageModelConfig
from lstm_jax.sharding import data_mesh, split_among
from lstm_jax.systems.base import ShardState
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.state import TrainState, bytes_a_device, train_step
from lstm_jax.training.task import Task, first_state, heldout_metrics, restored_state

MODEL = LanguageModelConfig(hidden_size=16, embedding_size=16, tied=True, dropout=0.3)


def on_four(kind: ShardState) -> Task:
    return task(config(devices=4, shard_state=kind, zero_carry_rate=0.1, model=MODEL))


def places(state: TrainState) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def held(tree: Any) -> int:
    """Bytes on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def trained(kind: ShardState, steps: int) -> tuple[list[float], TrainState]:
    the_task = on_four(kind)
    state, feed, losses = first_state(the_task), the_task.system.feed(), []
    before = places(state)
    for step in range(steps):
        state, metrics = train_step(the_task.program, state, feed(step))
        losses.append(float(metrics.loss))
    assert places(state) == before  # so that nothing is compiled twice
    return losses, state


@pytest.fixture(scope="module")
def whole() -> tuple[list[float], TrainState]:
    return trained("none", 200)


@pytest.mark.parametrize(
    ("kind", "share"),
    [pytest.param("moments", (1 + 2 / 4) / 3, marks=pytest.mark.slow), ("all", 1 / 4)],
)
def test_a_split_state_is_smaller_and_learns_the_same(
    whole: tuple[list[float], TrainState], kind: ShardState, share: float
) -> None:
    losses, state = trained(kind, 200)
    np.testing.assert_allclose(losses, whole[0], rtol=0, atol=2e-6)
    size = held((whole[1].params, whole[1].opt_state))
    assert bytes_a_device(on_four(kind).program) == held((state.params, state.opt_state))
    # The bias of 23 tokens, its two means and the step's number do not divide.
    assert held((state.params, state.opt_state)) == pytest.approx(share * size, rel=0.05)
    judged, expected = (
        heldout_metrics(on_four(k), s) for k, s in [(kind, state), ("none", whole[1])]
    )
    for name, value in expected.items():
        assert judged[name] == pytest.approx(value, rel=1e-4)


def test_a_step_that_is_not_finite_changes_no_part() -> None:
    the_task = on_four("all")
    state, feed = first_state(the_task), the_task.system.feed()
    state = replace(
        state, carry=jax.tree.map(lambda leaf: leaf * jnp.nan, state.carry), batch=state.batch + 1
    )
    before = jax.device_get(state.params)
    after, metrics = train_step(the_task.program, state, feed(1))
    assert not np.isfinite(float(metrics.grad_norm)) and int(after.skipped) == 1
    assert_same_bits(jax.device_get(after.params), before)


@pytest.mark.slow
def test_a_run_goes_on_however_its_state_is_split(tmp_path: Path) -> None:
    """Its checkpoints hold whole arrays; on the way it writes samples."""
    settings: dict[str, Any] = {
        "devices": 4,
        "sample_every": 6,
        "sample_prompts": ("2 times",),
        "model": MODEL,
        "steps": 6,
    }

    the_task = task(config(**settings, shard_state="all"))
    state, report = run(tmp_path / "all", the_task)
    ((_, prompt, text),) = report.samples
    assert text.startswith(prompt) and len(text) > len(prompt)
    for each in ("none", "moments", "all"):
        other = task(config(**settings, shard_state=each))
        with CheckpointStore(tmp_path / "all" / "checkpoints", read_only=True) as store:
            restored, _ = restored_state(other, store)
        assert_same_bits(jax.device_get(restored), jax.device_get(state))
        assert places(restored) == places(first_state(other))


def test_an_array_is_split_along_its_largest_axis_that_divides() -> None:
    mesh = data_mesh(4)
    for shape, spec in {
        (): (), (3,): (), (8,): ("data",), (4, 8): (None, "data"), (8, 6): ("data",),
        (8, 8): ("data",), (5, 4, 9): (None, "data"),
    }.items():  # fmt: skip
        place = split_among(mesh, shape)
        expected = jax.NamedSharding(mesh, jax.P(*spec))
        assert place.is_equivalent_to(expected, len(shape)), shape

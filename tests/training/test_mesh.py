"""A step over a mesh is the step on one device, and devices exchange one sum."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tasks import TEXT, config

from lstm_jax.classifier import ClassifierConfig
from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems import read_system
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig
from lstm_jax.training.state import evaluate, train_step
from lstm_jax.training.task import Task, first_state, make_task

DROPS: dict[str, Any] = {"hidden_size": 6, "embedding_size": 4, "dropout": 0.3}
SYSTEMS: dict[str, TrainConfig] = {
    "language": config(zero_carry_rate=0.2),
    "poems": PoemsConfig(
        data="poems.txt", batch_size=8, length=10, widths=2, model=LanguageModelConfig(**DROPS)
    ),
    "reviews": ReviewsConfig(
        data="reviews.tsv", batch_size=8, length=8, widths=2,
        model=ClassifierConfig(**DROPS, layers=2, dense_size=5, word_dropout=0.2),
    ),
    "frozen vectors": ReviewsConfig(
        data="reviews.tsv", vectors="vectors.txt", batch_size=8, length=8, widths=2,
        model=ClassifierConfig(hidden_size=6, dense_size=5, learn_missing=True),
    ),
    "both directions": config(
        model=replace(config().model, bidirectional=True, dropout_place="inputs", remat=7)
    ),
    "bfloat16": config(model=replace(config().model, cell="lstm", compute_dtype="bfloat16")),
    "published": config(layout="published"),
}  # fmt: skip


@pytest.fixture
def tasks(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same system on one device and on two."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(list("abcdefghij"), rng.integers(1, 13))) for _ in range(43)]
    Path("poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    reviews = [f"{'ab'[row % 2]} {' '.join(poem)}\t{row % 2}" for row, poem in enumerate(poems)]
    Path("reviews.tsv").write_text("text\tlabel\n" + "\n".join(reviews) + "\n")
    Path("text.txt").write_text(TEXT)
    Path("vectors.txt").write_text("a 0.5 -1 2\nc 1 1 -0.5\n")
    settings = SYSTEMS[request.param]
    if settings.data is None:
        settings = replace(settings, data="text.txt")
    return [make_task(read_system(replace(settings, devices=devices))) for devices in (1, 2)]


def trained(task: Task, steps: int) -> tuple[list[float], Any]:
    state, feed, losses = first_state(task), task.system.feed(), []
    for step in range(steps):
        state, metrics = train_step(task.program, state, feed(step))
        losses.append(float(metrics.loss))
    return losses, state


each_system = pytest.mark.parametrize(
    "tasks",
    [
        name if name == "language" else pytest.param(name, marks=pytest.mark.slow)
        for name in SYSTEMS
    ],
    indirect=True,
)


@each_system
def test_losses_do_not_depend_on_the_number_of_devices(tasks: list[Task]) -> None:
    """Nor does what is drawn; the last batch of an epoch has rows that only fill it up."""
    steps = tasks[0].program.batches + 1
    (one, alone), (two, shared) = (trained(task, steps) for task in tasks)
    is_narrow = "bfloat16" in str(tasks[0].config)
    np.testing.assert_allclose(two, one, rtol=1e-3 if is_narrow else 2e-6)
    for found, expected in zip(*map(jax.tree.leaves, (shared.params, alone.params)), strict=True):
        assert len(found.devices()) == 2
        if not is_narrow:
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)  # by Adam's roots
    judged = [
        evaluate(
            task.system.objective, state.params, task.system.heldout(),
            task.system.heldout_batch_size,
        )
        for task, state in zip(tasks, (alone, shared), strict=True)
    ]  # fmt: skip
    for part, sums in judged[0].items():
        np.testing.assert_allclose(sums, judged[1][part], rtol=1e-2 if is_narrow else 1e-4)


@each_system
def test_devices_exchange_one_sum_of_gradients(tasks: list[Task]) -> None:
    """Outside all loops, of as many numbers as there are parameters, and a few sums."""
    task = tasks[1]
    state = first_state(task)
    lowered = train_step.lower(task.program, state, task.system.feed()(0))
    text = lowered.compile().as_text()
    collective = r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("
    ((shape, operation),) = re.findall(collective, text)
    assert operation == "all-reduce"
    assert operation in text[text.index("\nENTRY ") :]
    (numbers,) = re.findall(r"f32\[(\d+)\]", shape)
    assert 0 < int(numbers) - task.parameters < 10

"""A vocabulary split among devices is the whole one: losses, gradients, and what is exchanged."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import TEXT, config

from lstm_jax import sharding
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.systems import read_system
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig
from lstm_jax.training.state import train_step
from lstm_jax.training.task import Task, first_state, heldout_metrics, make_task

TIED = LanguageModelConfig(hidden_size=12, embedding_size=12, tied=True, dropout=0.3)
# 23 characters, which neither 2 nor 4 devices divide; the poems' 12, which both do.
SYSTEMS: dict[str, TrainConfig] = {
    "tied": config(zero_carry_rate=0.2, model=TIED),
    "poems": PoemsConfig(
        data="poems.txt", batch_size=8, length=10, widths=2,
        model=LanguageModelConfig(hidden_size=6, embedding_size=4, dropout=0.3),
    ),
    "one-hot": config(),
    "embedding, in chunks": config(model=replace(TIED, tied=False, hidden_size=10, remat=7)),
}  # fmt: skip
GROUPS = {
    "{{0,1},{2,3}}": "tensor", "[2,2]<=[4]": "tensor", "{'tensor'}": "tensor",
    "{{0,2},{1,3}}": "data", "[2,2]<=[2,2]T(1,0)": "data", "{'data'}": "data",
    "{{0,1,2,3}}": "all", "[1,4]<=[4]": "all", "{'data','tensor'}": "all",
}  # fmt: skip
"""How the compiler names the devices that take part."""
MESHES = [(1, "none"), (2, "none"), (4, "none"), (2, "all")]


def but_one_are_slow(cases: list[tuple[Any, ...]], plain: tuple[Any, ...]) -> list[Any]:
    """The one that runs by default, and the others of its law."""
    slow = pytest.mark.slow
    return [case if case == plain else pytest.param(*case, marks=slow) for case in cases]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    poems = ["".join(rng.choice(list("abcdefghijk"), rng.integers(1, 13))) for _ in range(43)]
    Path("poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    Path("text.txt").write_text(TEXT)


def on_a_mesh(name: str, devices: int, tensor: int, **changes: Any) -> Task:
    settings = replace(SYSTEMS[name], devices=devices, tensor=tensor, **changes)
    return make_task(read_system(replace(settings, data=settings.data or "text.txt")))


def trained(task: Task, steps: int) -> tuple[list[float], Any]:
    state, feed, losses = first_state(task), task.system.feed(), []
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    for step in range(steps):
        state, metrics = train_step(task.program, state, feed(step))
        losses.append(float(metrics.loss))
    if task.config.device_count > 1:
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
    return losses, state


@pytest.mark.parametrize(
    ("name", "tensor", "shard_state"),
    but_one_are_slow(
        [(name, *mesh) for name in SYSTEMS for mesh in MESHES], plain=("tied", 2, "all")
    ),
)
def test_losses_do_not_depend_on_the_mesh(name: str, tensor: int, shard_state: str) -> None:
    alone = on_a_mesh(name, 1, 1)
    losses, state = trained(alone, 50)
    expected = heldout_metrics(alone, state)
    task = on_a_mesh(name, 4, tensor, shard_state=shard_state)
    found, split = trained(task, 50)
    np.testing.assert_allclose(found, losses, rtol=0, atol=2e-6)
    for key, value in heldout_metrics(task, split).items():
        assert value == pytest.approx(expected[key], rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "tied"), [(2, True), (4, True), (2, False), (4, False)])
def test_values_and_gradients_are_the_whole_vocabularys(tensor: int, tied: bool) -> None:
    """In a step of one's own; tokens and targets outside the vocabulary and masked ones as well."""
    model = LanguageModel(replace(TIED, tied=tied), 23)
    mesh = sharding.data_mesh(4, 4, tensor)
    params = model.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    tokens, targets = (jax.random.randint(key, (9, 8), -1, 26) for key in keys[:2])
    mask = jax.random.bernoulli(keys[2], 0.7, (9, 8))
    specs = model.vocabulary_specs("tensor")

    def gradients(params: Any, axis: str | None, *batch: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            tokens, targets, mask = batch
            sums, scores, _ = model.token_scores(
                params, None, tokens, targets, mask=mask, axis=axis
            )
            return sums.loss, (sums, scores)

        return jax.grad(loss, has_aux=True)(params)

    def of_slices(params: Any, *batch: jax.Array) -> Any:
        dparams, (sums, scores) = gradients(sharding.varying(params), "tensor", *batch)
        is_first = jax.lax.axis_index("tensor") == 0
        sums = jax.tree.map(lambda a: jnp.where(is_first, a, 0), sums)
        return *sharding.summed((dparams, sums), (specs, jax.P())), scores

    rows, whole = sharding.rows_at(1, mesh), jax.P()
    step = jax.shard_map(
        of_slices, mesh=mesh, in_specs=(specs, rows, rows, rows), out_specs=(specs, whole, rows)
    )
    dparams, sums, scores = jax.jit(step)(
        sharding.padded(mesh, specs, params), tokens, targets, mask
    )
    dparams = jax.tree.map(lambda d, p: d[tuple(map(slice, p.shape))], dparams, params)
    expected, (all_sums, all_scores) = jax.jit(gradients, static_argnums=1)(
        params, None, tokens, targets, mask
    )
    found = jax.tree.leaves((dparams, sums, scores))
    wanted = jax.tree.leaves((expected, all_sums, all_scores))
    for each, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_only_activations_go_between_the_devices_that_split_a_vocabulary() -> None:
    """And none of them in a layer's loop; gradients of the split parts go along "data" alone."""
    characters = [chr(0x4E00 + number) for number in range(399)]
    poems = ("".join(characters[first : first + 9]) for first in range(0, 399, 9))
    Path("poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    task = on_a_mesh("poems", 4, 2, batch_size=4)
    state = first_state(task)
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    split = task.parameters - held
    assert split == 400 // 2 * (4 + 6 + 1)
    lowered = train_step.lower(task.program, state, task.system.feed()(0))
    text = lowered.compile().as_text()
    exchanged: dict[str, list[int]] = {"tensor": [], "data": [], "all": []}
    operation = r"(?:all-\w+|collective-\w+|reduce-scatter)(?:-start)?"
    collective = rf"= (.*?) {operation}\(.*groups=(?:mesh\S+ )?(\S+?), "
    entry = text.index("\nENTRY ")
    for found in re.finditer(collective, text):
        shapes = [shape.split(",") for shape in re.findall(r"\[([\d,]*)\]", found[1])]
        numbers = sum(math.prod(int(size or 1) for size in shape) for shape in shapes)
        if found.start() < entry:  # the loss's loop: four numbers a token of each device's
            assert shapes[0][:2] == ["2", "4"]
        if numbers > 10:
            exchanged[GROUPS[found[2]]].append(numbers)
    assert max(exchanged["tensor"]) < 400 // 2
    assert exchanged["data"] == [split]
    assert len(exchanged["all"]) == 1
    assert 0 < exchanged["all"][0] - (task.parameters - 2 * split) < 10


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    Path("reviews.tsv").write_text("text\tlabel\n" + "a b\t1\nb c\t0\n" * 8)
    reviews = ReviewsConfig(data="reviews.tsv", batch_size=4, devices=2, tensor=2)
    with pytest.raises(ValueError, match="reviews predicts no vocabulary"):
        make_task(read_system(reviews))
    with pytest.raises(ValueError, match="tensor is 3, which does not divide 4 devices"):
        on_a_mesh("one-hot", 4, 3)

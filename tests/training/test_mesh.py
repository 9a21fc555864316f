"""A step over a mesh is the step on one device: losses, what each keeps, and what is exchanged."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import cases
from run_cases import saved_state, unequal
from tasks import config, run, task

from lstm_jax import sharding
from lstm_jax.classifier import ClassifierConfig
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.systems import read_system
from lstm_jax.systems.base import OptimizerConfig, TrainConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig
from lstm_jax.training.state import bytes_a_device, train_step
from lstm_jax.training.task import Task, first_state, heldout_metrics, make_task

GRU = config().model
TIED = LanguageModelConfig(hidden_size=16, embedding_size=16, tied=True, dropout=0.3)
DROPPED = replace(GRU, dropout=0.0, recurrent_dropout=0.3, use_bias=False, activation="relu")
DROPS: dict[str, Any] = {"hidden_size": 6, "embedding_size": 4, "dropout": 0.3}
ROWS: dict[str, Any] = {"batch_size": 8, "length": 8, "widths": 2}
# 23 characters, which neither 2 nor 4 devices divide; the poems' 12, which both do.
SYSTEMS: dict[str, TrainConfig] = {
    "one-hot": config(zero_carry_rate=0.2),
    "tied": config(zero_carry_rate=0.2, model=TIED),
    "embedding, in chunks": config(model=replace(TIED, tied=False, hidden_size=10, remat=7)),
    "both directions": config(
        model=replace(GRU, bidirectional=True, dropout_place="inputs", remat=7)
    ),
    "zoneout, in chunks": config(model=replace(DROPPED, recurrent_dropout_kind="zoneout", remat=7)),
    "both directions, dropped state": config(model=replace(DROPPED, bidirectional=True)),
    "bfloat16": config(model=replace(GRU, cell="lstm", compute_dtype="bfloat16")),
    "published": config(layout="published"),
    "averaged": config(
        weight_drop=0.5,
        model=replace(
            TIED, word_dropout=0.2, output_dropout=0.5, output_dropout_per="sequence", remat=7
        ),
        optimizer=OptimizerConfig(
            method="sgd", learning_rate=1.0, weight_decay=1e-3, average_after=1
        ),
    ),
    "poems": PoemsConfig(data="poems.txt", model=LanguageModelConfig(**DROPS), **ROWS),
    "reviews": ReviewsConfig(
        data="reviews.tsv", **ROWS,
        model=ClassifierConfig(**DROPS, layers=2, dense_size=5, word_dropout=0.2),
    ),
    "frozen vectors": ReviewsConfig(
        data="reviews.tsv", vectors="vectors.txt", **ROWS,
        model=ClassifierConfig(hidden_size=6, dense_size=5, learn_missing=True),
    ),
}  # fmt: skip
SHARES = {(1, "none"): 1, (1, "moments"): (1 + 2 / 4) / 3, (1, "all"): 1 / 4}
"""Of the state, that each of four devices keeps where none of them is one of a vocabulary's."""
GROUPS = {
    "{{0,1},{2,3}}": "tensor", "[2,2]<=[4]": "tensor", "{'tensor'}": "tensor",
    "{{0,2},{1,3}}": "data", "[2,2]<=[2,2]T(1,0)": "data", "{'data'}": "data",
    "{{0,1,2,3}}": "all", "[1,4]<=[4]": "all", "{'data','tensor'}": "all",
}  # fmt: skip
"""How the compiler names the devices that take part."""


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def on_a_mesh(name: str, devices: int, **changes: Any) -> Task:
    settings = replace(SYSTEMS[name], devices=devices, **changes)
    return make_task(read_system(replace(settings, data=settings.data or "text.txt")))


def places(state: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


@cache
def trained(name: str, devices: int, tensor: int, kept: Any) -> tuple[Task, Any, list[float]]:
    """An epoch and a step; the last batch of an epoch has rows that only fill it up."""
    task = on_a_mesh(name, devices, tensor=tensor, shard_state=kept)
    state, feed, losses = first_state(task), task.system.feed(), []
    before = places(state)
    for step in range(task.program.batches + 1):
        state, metrics = train_step(task.program, state, feed(step))
        losses.append(float(metrics.loss))
    assert devices == 1 or places(state) == before  # so that nothing is compiled twice
    return task, state, losses


MESHES = [
    *((name, 2, 1, "none") for name in SYSTEMS),
    *(("tied", 4, *mesh) for mesh in (*SHARES, (2, "none"), (4, "none"))),
    *(
        (name, 4, 2, "all")
        for name in ("one-hot", "tied", "embedding, in chunks", "averaged", "poems")
    ),
]


@cases("name, devices, tensor, kept", MESHES, ("tied", 4, 2, "all"))
def test_neither_losses_nor_what_is_drawn_depend_on_the_mesh(
    name: str, devices: int, tensor: int, kept: str
) -> None:
    alone, whole, losses = trained(name, 1, 1, "none")
    task, state, found = trained(name, devices, tensor, kept)
    is_narrow = name == "bfloat16"
    np.testing.assert_allclose(found, losses, rtol=1e-3 if is_narrow else 0, atol=2e-6)
    expected = heldout_metrics(alone, whole)
    for key, value in heldout_metrics(task, state).items():
        assert value == pytest.approx(expected[key], rel=1e-2 if is_narrow else 1e-4), key
    for leaf, other in zip(*map(jax.tree.leaves, (state.params, whole.params)), strict=True):
        assert len(leaf.devices()) == devices
        if not is_narrow:
            np.testing.assert_allclose(leaf, other, rtol=2e-3, atol=2e-5)  # by Adam's roots
    size, part = (
        sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(each))
        for each in ((whole.params, whole.opt_state), (state.params, state.opt_state))
    )
    assert bytes_a_device(task.program) == part
    if name == "tied" and (tensor, kept) in SHARES:
        # The bias of 23 tokens, its two means and the step's number do not divide.
        assert part == pytest.approx(SHARES[tensor, kept] * size, rel=0.05)


@pytest.mark.slow
def test_a_run_goes_on_however_its_state_is_split(tmp_path: Path) -> None:
    """Its checkpoints hold whole arrays; on the way it writes samples."""
    changes = {"steps": 6, "sample_every": 6, "sample_prompts": ("2 times",), "model": TIED}
    of = {kept: task(config(devices=4, shard_state=kept, **changes)) for _, kept in SHARES}
    state, report = run(tmp_path / "run", of["all"])
    ((_, prompt, text),) = report.samples
    assert text.startswith(prompt) and len(text) > len(prompt)
    for other in of.values():
        restored = saved_state(tmp_path / "run", other)
        assert unequal(jax.device_get(restored), jax.device_get(state)) == []
        assert places(restored) == places(first_state(other))


def test_an_array_is_split_along_its_largest_axis_that_divides() -> None:
    mesh = sharding.data_mesh(4)
    for shape, spec in {
        (): (), (3,): (), (8,): ("data",), (4, 8): (None, "data"), (8, 6): ("data",),
        (8, 8): ("data",), (5, 4, 9): (None, "data"),
    }.items():  # fmt: skip
        expected = jax.NamedSharding(mesh, jax.P(*spec))
        assert sharding.split_among(mesh, shape).is_equivalent_to(expected, len(shape)), shape


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "tied"), [(2, True), (4, True), (2, False), (4, False)])
def test_values_and_gradients_are_the_whole_vocabularys(tensor: int, tied: bool) -> None:
    """In a step of one's own; tokens and targets outside the vocabulary and masked ones as well."""
    model = LanguageModel(replace(TIED, tied=tied), 23)
    mesh = sharding.data_mesh(4, 4, tensor)
    params = model.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    tokens, targets = (jax.random.randint(key, (9, 8), -1, 26) for key in keys[:2])
    batch = tokens, targets, jax.random.bernoulli(keys[2], 0.7, (9, 8))
    specs = model.vocabulary_specs("tensor")

    def gradients(params: Any, axis: str | None, *batch: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            *texts, mask = batch
            sums, scores, _ = model.token_scores(params, None, *texts, mask=mask, axis=axis)
            return sums.loss, (sums, scores)

        return jax.grad(loss, has_aux=True)(params)

    def of_slices(params: Any, *batch: jax.Array) -> Any:
        dparams, (sums, scores) = gradients(sharding.varying(params), "tensor", *batch)
        is_first = jax.lax.axis_index("tensor") == 0
        sums = jax.tree.map(lambda a: jnp.where(is_first, a, 0), sums)
        return *sharding.summed((dparams, sums), (specs, jax.P())), scores

    rows = sharding.rows_at(1, mesh)
    step = jax.shard_map(
        of_slices, mesh=mesh, in_specs=(specs, rows, rows, rows), out_specs=(specs, jax.P(), rows)
    )
    dparams, *found = jax.jit(step)(sharding.padded(mesh, specs, params), *batch)
    dparams = jax.tree.map(lambda d, p: d[tuple(map(slice, p.shape))], dparams, params)
    expected, sums = jax.jit(gradients, static_argnums=1)(params, None, *batch)
    pairs = map(jax.tree.leaves, ((dparams, *found), (expected, *sums)))
    for each, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-5, atol=1e-5)


def compiled(task: Task) -> str:
    lowered = train_step.lower(task.program, first_state(task), task.system.feed()(0))
    return str(lowered.compile().as_text())


@cases("name", SYSTEMS, "one-hot")
def test_devices_exchange_one_sum_of_gradients(name: str) -> None:
    """Outside all loops, of as many numbers as there are parameters, and a few sums."""
    task = on_a_mesh(name, 2)
    text = compiled(task)
    collective = r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("
    ((shape, operation),) = re.findall(collective, text)
    assert operation == "all-reduce"
    assert operation in text[text.index("\nENTRY ") :]
    (numbers,) = re.findall(r"f32\[(\d+)\]", shape)
    assert 0 < int(numbers) - task.parameters < 10


@pytest.mark.slow
def test_only_activations_go_between_the_devices_that_split_a_vocabulary(tmp_path: Path) -> None:
    """And none of them in a layer's loop; gradients of the split parts go along "data" alone."""
    characters = [chr(0x4E00 + number) for number in range(399)]
    poems = ("".join(characters[first : first + 9]) for first in range(0, 399, 9))
    (tmp_path / "poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    data = {"data": str(tmp_path / "poems.txt"), "batch_size": 4, "length": 10}
    task = on_a_mesh("poems", 4, tensor=2, **data)
    held = jax.tree.leaves(first_state(task).params)
    split = task.parameters - sum(leaf.addressable_shards[0].data.size for leaf in held)
    assert split == 400 // 2 * (4 + 6 + 1)
    text = compiled(task)
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


def test_a_vocabulary_that_is_not_predicted_is_not_split() -> None:
    with pytest.raises(ValueError, match="reviews predicts no vocabulary"):
        on_a_mesh("reviews", 2, tensor=2)

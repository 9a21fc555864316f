"""Each file of a run, damaged in each way: noticed, named, and never loaded as if it were good."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_cases import rows_of, saved_state, snapshot, unequal
from short_runs import Promise, differences

from lstm_jax.systems import read_system
from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.log import MetricsLog
from lstm_jax.training.run import (
    RunFolder,
    read_description,
    refuse_damaged_files,
    refuse_other_data,
)
from lstm_jax.training.task import Task, restored_state

HOW = "damaged (a bit flipped, halved, a byte short, emptied, deleted)"
OLDER = "the step before used, the bad one set aside and named"
NONE = "without effect: the bytes loaded were right"
Damaged = Callable[[list[Path]], Iterator[tuple[str, Path, Path]]]


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    bit = int(place * len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def damages(flips: int, seed: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways to damage a file that is not empty, by name."""
    for place in np.random.default_rng(seed).uniform(0, 1, flips).tolist():
        yield f"a bit flipped at {place:.4f}", lambda path, place=place: flip(path, place)
    yield "halved", lambda path: os.truncate(path, path.stat().st_size // 2)
    yield "without its last byte", lambda path: os.truncate(path, path.stat().st_size - 1)
    yield "emptied", lambda path: os.truncate(path, 0)
    yield "deleted", lambda path: path.unlink()


@pytest.fixture
def damaged(whole: Path, tmp_path: Path, is_thorough: bool) -> Damaged:
    """For each of a run's files and each damage: what was done, a copy, and the file in it."""

    def damaged(files: list[Path]) -> Iterator[tuple[str, Path, Path]]:
        copy = tmp_path / "copy"
        for number, file in enumerate(sorted(file for file in files if file.stat().st_size)):
            for how, damage in damages(16 if is_thorough else 1, seed=number):
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(whole, copy)
                path = file.relative_to(whole)
                damage(copy / path)
                yield f"{path} {how}", copy, copy / path

    return damaged


def seen(outcomes: Counter[str]) -> str:
    return "; ".join(f"{number} {name}" for name, number in outcomes.most_common())


def opened(run: Path, task: Task) -> Any:
    """The state that `--resume` goes on from."""
    folder = RunFolder(run)
    config = read_description(folder).config
    refuse_damaged_files(folder)
    refuse_other_data(folder, read_system(config, run))
    state, _ = restored_state(task, CheckpointStore(folder.checkpoints))
    MetricsLog(folder.metrics, int(state.step)).close()
    return state


def test_of_a_damaged_checkpoint_nothing_wrong_is_loaded(
    whole: Path, task: Task, damaged: Damaged, promise: Promise, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor by what only reads, which sets nothing aside; asked for by name it is refused."""
    checkpoints = RunFolder(whole).checkpoints
    known = {
        int(each.name): saved_state(whole, task, int(each.name)) for each in checkpoints.iterdir()
    }
    newest = max(known)
    files = [path for path in (checkpoints / str(newest)).rglob("*") if path.is_file()]
    outcomes, failures = Counter[str](), []
    for how, run, _ in damaged(files):
        before = snapshot(run)
        read = saved_state(run, task)
        assert snapshot(run) == before
        caplog.clear()
        state = opened(run, task)
        step = int(state.step)
        aside = RunFolder(run).checkpoints / f"{newest}.damaged"
        for each in (read, state):
            if unequal(each, known.get(step, {})):
                failures.append(f"{how}: other values of step {step}")
        if step < newest and not (aside.is_dir() and str(aside) in caplog.text):
            failures.append(f"{how}: set aside without a word: {caplog.text!r}")
        elif step < newest:
            aside.rename(aside.with_suffix(""))
            with pytest.raises(CheckpointError, match=rf"{newest} is damaged[^\n]*\Z"):
                saved_state(run, task, newest)
        outcomes[OLDER if step < newest else NONE] += 1
    assert outcomes[OLDER] > 0
    promise(
        f"a file of the newest checkpoint {HOW}",
        outcomes.total(),
        failures,
        f"files: {len(files)}; {seen(outcomes)}",
    )


def test_damaged_metrics_change_nothing_of_the_training(
    whole: Path, task: Task, damaged: Damaged, promise: Promise, caplog: pytest.LogCaptureFixture
) -> None:
    """And the rows that are whole are kept."""
    caplog.set_level(logging.ERROR)
    last, metrics = saved_state(whole, task), RunFolder(whole).metrics
    outcomes, failures = Counter[str](), []
    for how, run, file in damaged([metrics]):
        lines = file.read_bytes().splitlines() if file.exists() else []
        good = set(metrics.read_bytes().splitlines()) & set(lines)
        state = opened(run, task)
        kept = set(file.read_bytes().splitlines())
        if unequal(state, last) or not good <= kept:
            failures.append(f"{how}: {len(good - kept)} good rows lost")
        outcomes["trained on, the rows that are whole kept"] += 1
    promise(f"metrics.jsonl {HOW}", outcomes.total(), failures, seen(outcomes))


def test_a_damaged_description_is_refused_by_name(
    whole: Path, task: Task, damaged: Damaged, promise: Promise
) -> None:
    files = [whole / name for name in ("config.json", "vocab.json", "corpus.txt")]
    outcomes, failures = Counter[str](), []
    for how, run, file in damaged([file for file in files if file.exists()]):
        try:
            opened(run, task)
            failures.append(f"{how}: it was not noticed")
        except ValueError as refusal:
            if file.name not in str(refusal) or "\n" in str(refusal):
                failures.append(f"{how}: not named: {refusal}")
        outcomes["refused by name"] += 1
    promise(f"config.json, or a file it knows, {HOW}", outcomes.total(), failures, seen(outcomes))


def test_differences_are_found(whole: Path, task: Task, tmp_path: Path) -> None:
    """The comparisons that the others rest on."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert differences(whole, other, task) == []
    log = RunFolder(other).metrics
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*rows[:3], *rows[2:]]))
    assert differences(whole, other, task) == ["rows of metrics differ"]
    log.write_text("".join([*rows[:3], rows[3].replace('"loss": 3', '"loss": 4'), *rows[4:]]))
    assert rows_of(other) != rows_of(whole)
    newest = max(RunFolder(other).checkpoints.iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert any("params" in found for found in differences(whole, other, task))

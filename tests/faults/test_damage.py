"""Each file of a run, damaged in each way: noticed, named, and never loaded as if it were good."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from short_runs import Promise, bytes_of, differences, leaf_bytes, rows_of

from lstm_jax.systems import read_system
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog
from lstm_jax.training.run import (
    RunFolder,
    read_description,
    refuse_damaged_files,
    refuse_other_data,
)
from lstm_jax.training.task import Task, restored_state

HOW = "damaged (a bit flipped, halved, a byte short, emptied, deleted)"
REFUSED, OLDER, NONE = (
    "refused by name",
    "the step before used, the bad one set aside and named",
    "without effect: the bytes loaded were right",
)


def damages(flips: int, seed: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways to damage a file that is not empty, by name."""

    def flipped(place: float) -> Callable[[Path], None]:
        def flip(path: Path) -> None:
            data = bytearray(path.read_bytes())
            bit = int(place * len(data) * 8)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)

        return flip

    for place in np.random.default_rng(seed).uniform(0, 1, flips):
        yield f"a bit flipped at {place:.4f}", flipped(float(place))
    yield "halved", lambda path: os.truncate(path, path.stat().st_size // 2)
    yield "without its last byte", lambda path: os.truncate(path, path.stat().st_size - 1)
    yield "emptied", lambda path: os.truncate(path, 0)
    yield "deleted", lambda path: path.unlink()


def damaged_copies(
    run: Path, files: list[Path], scratch: Path, flips: int
) -> Iterator[tuple[str, Path, Path]]:
    """What was done, the copy, and the file in it."""
    for number, file in enumerate(sorted(file for file in files if file.stat().st_size)):
        for how, damage in damages(flips, seed=number):
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(run, scratch)
            damaged = scratch / file.relative_to(run)
            damage(damaged)
            yield f"{file.relative_to(run)} {how}", scratch, damaged


@pytest.fixture
def flips(is_thorough: bool) -> int:
    return 16 if is_thorough else 1


def seen(outcomes: Counter[str]) -> str:
    return "; ".join(f"{number} {name}" for name, number in outcomes.most_common())


def opened(run: Path, task: Task) -> tuple[int, dict[str, bytes]]:
    """The step and the state that `--resume` goes on from."""
    folder = RunFolder(run)
    config = read_description(folder).config
    refuse_damaged_files(folder)
    refuse_other_data(folder, read_system(config, run))
    with CheckpointStore(folder.checkpoints) as store:
        state, _ = restored_state(task, store)
    MetricsLog(folder.metrics, int(state.step)).close()
    return int(state.step), leaf_bytes(state)


def test_of_a_damaged_checkpoint_nothing_wrong_is_loaded(
    whole: Path, task: Task, tmp_path: Path, flips: int, promise: Promise,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with CheckpointStore(RunFolder(whole).checkpoints, read_only=True) as store:
        known = {step: bytes_of(whole, task, step) for step in store.steps()}
    newest = RunFolder(whole).checkpoints / str(max(known))
    files = [path for path in newest.rglob("*") if path.is_file()]
    outcomes, failures = Counter[str](), []
    for how, run, _ in damaged_copies(whole, files, tmp_path / "copy", flips):
        caplog.clear()
        step, state = opened(run, task)
        aside = RunFolder(run).checkpoints / f"{newest.name}.damaged"
        if state != known.get(step):
            failures.append(f"{how}: other values of step {step}")
        elif step < max(known) and not (aside.is_dir() and str(aside) in caplog.text):
            failures.append(f"{how}: set aside without a word: {caplog.text!r}")
        outcomes[OLDER if step < max(known) else NONE] += 1
    assert outcomes[OLDER] > 0
    promise(
        f"a file of the newest checkpoint {HOW}",
        outcomes.total(),
        failures,
        f"files: {len(files)}; {seen(outcomes)}",
    )


def test_damaged_metrics_change_nothing_of_the_training(
    whole: Path, task: Task, tmp_path: Path, flips: int, promise: Promise,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """And the rows that are whole are kept."""
    caplog.set_level(logging.ERROR)
    last, metrics = bytes_of(whole, task), RunFolder(whole).metrics
    outcomes, failures = Counter[str](), []
    for how, run, file in damaged_copies(whole, [metrics], tmp_path / "copy", flips):
        lines = file.read_bytes().splitlines() if file.exists() else []
        good = set(metrics.read_bytes().splitlines()) & set(lines)
        _, state = opened(run, task)
        kept = set(file.read_bytes().splitlines())
        if state != last or not good <= kept:
            failures.append(f"{how}: {len(good - kept)} good rows lost")
        outcomes["trained on, the rows that are whole kept"] += 1
    promise(f"metrics.jsonl {HOW}", outcomes.total(), failures, seen(outcomes))


def test_a_damaged_description_is_refused_by_name(
    whole: Path, task: Task, tmp_path: Path, flips: int, promise: Promise
) -> None:
    names = ("config.json", "vocab.json", "corpus.txt")
    files = [whole / name for name in names if (whole / name).exists()]
    outcomes, failures = Counter[str](), []
    for how, run, file in damaged_copies(whole, files, tmp_path / "copy", flips):
        try:
            opened(run, task)
            failures.append(f"{how}: it was not noticed")
        except ValueError as refusal:
            if file.name not in str(refusal) or "\n" in str(refusal):
                failures.append(f"{how}: not named: {refusal}")
        outcomes[REFUSED] += 1
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

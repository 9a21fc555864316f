"""Runs that can't simply go on: other settings, numbers that are not finite, half-made folders."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_cases import TEXT, saved_state, snapshot, unequal
from short_runs import Place, Promise, differences
from tasks import run as train

from lstm_jax.cli.main import train_command
from lstm_jax.settings import flat
from lstm_jax.training import loop
from lstm_jax.training.run import (
    RunFolder,
    copy_description,
    load,
    read_description,
    refuse_damaged_files,
    refuse_existing,
    write_config,
)
from lstm_jax.training.state import train_step
from lstm_jax.training.task import Task, first_state

HARMLESS = {"optimizer.learning_rate": 0.002, "optimizer.clip_norm": 1.0, "model.dropout": 0.1,
            "log_every": 4, "evaluate_every": 9, "checkpoint_every": 6, "keep_checkpoints": 4,
            "sample.temperature": 0.5}  # fmt: skip
HARMFUL = {"model.hidden_size": 13, "model.layers": 2, "model.cell": "gru",
           "model.embedding_size": 4, "tokens": "word", "characters": 999, "batch_size": 5,
           "sequence_length": 17, "heldout_share": 0.2, "seed": 1}  # fmt: skip


def flag(name: str, value: object) -> list[str]:
    return [f"--{name.replace('_', '-')}", str(value)]


@pytest.mark.slow
def test_harmless_settings_are_recorded(place: Place, whole: Path, promise: Promise) -> None:
    shutil.copytree(whole, place.path / "harmless")
    flags = [part for name, value in HARMLESS.items() for part in flag(name, value)]
    process = place.begun("harmless", *flags, "--steps", str(place.steps + 6))
    assert process.wait() == 0, process.errors
    recorded = flat(json.loads(RunFolder(place.path / "harmless").config.read_text())["config"])
    found = {name: recorded[name] for name in HARMLESS}
    promise(
        "resumed with settings that harm nothing",
        len(HARMLESS) + 1,
        [f"{name} is {value}" for name, value in found.items() if value != HARMLESS[name]],
        f"trained on and recorded in config.json: {', '.join(HARMLESS)}, steps",
    )


def test_harmful_settings_are_refused(whole: Path, tmp_path: Path, promise: Promise) -> None:
    """And nothing is changed."""
    other, before = tmp_path / "other.txt", snapshot(whole)
    other.write_text(TEXT.replace("milk", "mild"), encoding="utf-8")
    cases = [(flag(name, value), f"{name} is") for name, value in HARMFUL.items()]
    failures = []
    for flags, said in [*cases, (["--data", str(other)], "SHA-256 differs")]:
        try:
            train_command(["--run-dir", str(whole), "--resume", *flags])
            failures.append(f"{flags}: it was accepted")
        except ValueError as refusal:
            failures += [] if said in str(refusal) else [f"{flags}: {refusal}"]
    failures += [] if snapshot(whole) == before else ["the run was changed"]
    promise(
        "resumed with settings, or data, that do not fit",
        len(HARMFUL) + 1,
        failures,
        f"refused by name: {', '.join(HARMFUL)}; other data by its SHA-256",
    )


def test_parameters_that_are_not_finite_teach_nothing(
    whole: Path, task: Task, tmp_path: Path, promise: Promise
) -> None:
    arrays, structure = jax.tree.flatten(jax.device_get(first_state(task).params))
    failures = []
    for place, array in enumerate(arrays):
        folder = RunFolder(tmp_path / f"nonfinite-{place}")
        copy_description(RunFolder(whole), folder)
        found = [*arrays[:place], jnp.full_like(array, jnp.nan), *arrays[place + 1 :]]
        state = dataclasses.replace(first_state(task), params=structure.unflatten(found))
        before = jax.device_get((state.params, state.opt_state))
        with pytest.raises(loop.NotFiniteError, match=str(folder.nonfinite.path)):
            train(folder.path, task, begun=state)
        for each in (folder, folder.nonfinite):
            saved = saved_state(each.path, task)
            if unequal((saved.params, saved.opt_state), before):
                failures.append(f"array {place}: {each.path.name} holds other parameters")
        _, metrics = train_step(task.program, saved, task.system.feed()(int(saved.step)))
        if np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm):
            failures.append(f"array {place}: the run that was left does not repeat it")
    promise(
        "loss and gradient not finite",
        len(arrays),
        failures,
        "one parameter array after the other was NaN: no step changed a parameter or the "
        f"optimizer; training gave up after {task.config.skipped_at_most} skipped steps and left a "
        "run that repeats the last",
    )


def test_a_folder_half_made_by_a_killed_run_is_taken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    refuse_existing(folder)  # what the system leaves is nothing
    for name in (".vocabulary-0123456789abcdef.tmp", "config.tmp", "vocab.json", "corpus.txt"):
        (tmp_path / name).write_text("half of it")
    with pytest.raises(ValueError, match="exists already"):
        refuse_existing(folder)  # it might be the user's
    folder.lock.touch()
    refuse_existing(folder)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        refuse_existing(folder)


def test_a_run_without_a_checkpoint_begins_anew(place: Place, whole: Path, task: Task) -> None:
    run = place.path / "early"
    run.mkdir()
    for file in ("vocab.json", "config.json"):
        shutil.copyfile(whole / file, run / file)
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"st')
    assert differences(whole, place.finished("early"), task) == []


def test_a_model_loads_without_its_text(whole: Path, task: Task, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    files = read_description(folder).files
    write_config(folder, task.system, files | {"corpus.txt": "0" * 64})
    assert load(folder.path)
    with pytest.raises(ValueError, match=r"corpus\.txt"):
        refuse_damaged_files(folder)
    write_config(folder, task.system, files | {"vocab.json": "0" * 64})
    with pytest.raises(ValueError, match=r"vocab\.json is not what the run wrote"):
        load(folder.path)

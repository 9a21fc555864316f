"""What training promises under faults, in the short form of `python -m bench.faults`."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.faults import space
from bench.faults.corruption import corrupt
from bench.faults.kills import kill_runs
from bench.faults.lines import Line
from bench.faults.nonfinite import poison
from bench.faults.settings import harmful_settings, harmless_settings
from bench.faults.sharing import share
from bench.faults.signals import PHASES, second_signal, signal_runs
from bench.faults.tiny import Place, differences, rows_of, task_of
from lstm_jax.training.run import (
    RunFolder,
    load,
    read_description,
    refuse_damaged_files,
    refuse_existing,
    write_config,
)
from lstm_jax.training.task import Task


def assert_held(line: Line) -> None:
    assert line.failures == (), line
    assert line.tried > 0, line
    assert line.held == line.tried


def test_a_run_killed_at_a_random_moment_ends_as_one_left_alone(place: Place, whole: Path) -> None:
    assert_held(kill_runs(place, whole, kills=1, a_run=1, seed=1))


@pytest.mark.slow
@pytest.mark.beyond_ci
def test_runs_killed_many_times_end_as_one_left_alone(place: Place, whole: Path) -> None:
    slow = Place(place.path / "many", place.steps)
    slow.make()
    assert_held(kill_runs(slow, whole, kills=30, a_run=10, seed=2))


@pytest.mark.slow
def test_a_signal_in_any_phase_saves_the_state(place: Place, whole: Path) -> None:
    for line in signal_runs(place, whole, PHASES):
        assert_held(line)
    assert_held(second_signal(place, whole, task_of(whole)))


def test_no_damaged_file_of_a_run_is_taken_for_a_good_one(
    whole: Path, task: Task, tmp_path: Path
) -> None:
    lines = corrupt(whole, task, tmp_path / "copy", flips=2, seed=0)
    assert [line.fault.split(" damaged")[0] for line in lines] == [
        "a file of the newest checkpoint",
        "config.json, or a file it knows",
    ]
    for line in lines:
        assert_held(line)
    assert "the step before used" in lines[0].seen
    assert "without effect" not in lines[1].seen


@pytest.mark.parametrize("ends", [True, False], ids=["for a while", "to the end"])
@pytest.mark.parametrize("how", ["no bytes", "file in the way", "EROFS", "EDQUOT", "ENOSPC"])
def test_without_space_training_goes_on_and_the_next_save_with_space_is_good(
    how: str, ends: bool, whole: Path, task: Task, tmp_path: Path
) -> None:
    fault = {"no bytes": space.no_bytes, "file in the way": space.file_in_the_way}.get(how)
    fault = fault or space.raising(getattr(errno, how))
    assert space.tried(whole, task, tmp_path / "run", fault, ends) == []


def test_parameters_that_are_not_finite_teach_nothing(
    whole: Path, task: Task, tmp_path: Path
) -> None:
    assert_held(poison(whole, task, tmp_path))


@pytest.mark.slow
def test_a_folder_belongs_to_one_process(place: Place, whole: Path, task: Task) -> None:
    for line in share(place, whole, task):
        assert_held(line)


def test_settings_that_do_not_fit_are_refused(place: Place, whole: Path) -> None:
    assert_held(harmful_settings(place, whole))


@pytest.mark.slow
def test_settings_that_harm_nothing_are_recorded(place: Place, whole: Path) -> None:
    assert_held(harmless_settings(place, whole))


@pytest.mark.parametrize("kept", [(), ("vocab.json",), ("vocab.json", "vectors.npy")])
def test_a_run_killed_while_its_folder_was_made_is_not_in_the_way(
    kept: tuple[str, ...], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    for name in (".vocabulary-0123456789abcdef.tmp", "config.tmp", *kept):
        (tmp_path / name).write_text("half of it")
    with pytest.raises(ValueError, match="exists already"):
        refuse_existing(folder)  # it might be the user's
    folder.lock.touch()
    refuse_existing(folder)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        refuse_existing(folder)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    place: Place, whole: Path, task: Task
) -> None:
    run = place.path / "early"
    run.mkdir()
    for file in ("vocab.json", "config.json"):
        shutil.copyfile(whole / file, run / file)
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"st')
    assert differences(whole, place.finished("early"), task) == []


def test_a_model_loads_without_the_text_it_was_trained_on(
    whole: Path, task: Task, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    files = read_description(folder).files
    write_config(folder, task.system, files | {"corpus.txt": "0" * 64})
    assert len(load(folder.path)) == 3
    with pytest.raises(ValueError, match=r"corpus\.txt"):
        refuse_damaged_files(folder)
    write_config(folder, task.system, files | {"vocab.json": "0" * 64})
    with pytest.raises(ValueError, match=r"vocab\.json is not what the run wrote"):
        load(folder.path)


def test_differences_are_found(whole: Path, task: Task, tmp_path: Path) -> None:
    """The comparison that all the others rest on."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    assert differences(whole, other, task) == []
    log = RunFolder(other).metrics
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*rows[:3], *rows[2:]]))
    assert differences(whole, other, task) == ["rows of metrics differ"]
    row = json.loads(rows[3])
    row["loss"] = float(np.nextafter(row["loss"], 9))
    log.write_text("".join([*rows[:3], json.dumps(row) + "\n", *rows[4:]]))
    assert rows_of(other) != rows_of(whole)
    newest = max(RunFolder(other).checkpoints.iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert any("params" in found for found in differences(whole, other, task))

"""Run folders of earlier versions load, and give what they gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from old_runs import CLASSIFIER, FIXTURES, RUNS, expectations_of
from short_runs import task_of

import lstm_jax
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.state import evaluate
from lstm_jax.training.task import restored_state

EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


def test_each_folder_has_expectations_and_finds_its_data_wherever_it_lies() -> None:
    for run in RUNS.iterdir():
        config = read_description(RunFolder(run)).config
        paths = [getattr(config, name, None) for name in ("data", "vectors")]
        assert not any(path and Path(path).is_absolute() for path in paths)
    assert {run.name for run in RUNS.iterdir()} == set(EXPECTED)
    assert CLASSIFIER in EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_run_gives_what_it_gave(name: str) -> None:
    found, expected = expectations_of(name), EXPECTED[name]
    assert found.pop("tokens", None) == expected.pop("tokens", None)
    assert found.keys() == expected.keys()
    for measure, value in expected.items():
        assert found[measure] == pytest.approx(value, rel=1e-5), measure


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_run_can_be_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its state fits, and its held-out loss is that of its last row of metrics.

    Which was found without contexts, from a carry of zeros; a lane's context is its first batch.
    """
    monkeypatch.chdir(FIXTURES)
    folder = RunFolder(tmp_path / name)
    shutil.copytree(RUNS / name, folder.path)
    task = task_of(folder.path)
    with CheckpointStore(folder.checkpoints) as store:
        state, _ = restored_state(task, store)
    assert int(state.step) == 6
    rows = folder.metrics.read_bytes()
    MetricsLog(folder.metrics, 6).close()
    assert folder.metrics.read_bytes() == rows
    batches = [*task.system.heldout()][name in ("lstm", "gru") :]
    size = task.system.heldout_batch_size
    sums = evaluate(task.system.objective, state.params, batches, size)[""]
    last = read_rows(folder.metrics)[-1]["heldout_loss"]
    assert sums.loss / sums.weight == pytest.approx(last, rel=1e-5)


def test_a_classifier_of_a_version_that_kept_vectors_in_a_file_says_what_to_do(
    tmp_path: Path,
) -> None:
    shutil.copyfile(FIXTURES / "reviews_with_a_file_of_vectors.json", tmp_path / "config.json")
    (tmp_path / "vectors.npy").touch()
    with pytest.raises(ValueError, match=r"older version.*vectors\.npy; train it anew"):
        lstm_jax.load(tmp_path)

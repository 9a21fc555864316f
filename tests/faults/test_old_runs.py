"""Run folders of earlier versions load, and give what they gave.

    PYTHONPATH=tests python tests/faults/test_old_runs.py

makes those that are not there yet. Each was made by the version whose format it is of, from the
texts in `fixtures/data`, and stays as it is.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import task_of

import lstm_jax
from lstm_jax.cli.main import train_command
from lstm_jax.sampling import FREE, generate
from lstm_jax.systems.reviews import probabilities
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.state import evaluate
from lstm_jax.training.task import restored_state

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = FIXTURES / "runs"
CLASSIFIER = "reviews"
SMALL = (
    "--model.hidden-size 6 --batch-size 4 --steps 6 --log-every 2 --evaluate-every 6 "
    "--checkpoint-every 6 --keep-checkpoints 1"
)
OF_TEXT = "--data data/wall.txt --sequence-length 12 --sample-prompts 7 --sample-every 0"
OF_POEMS = "poems --data data/poems.txt --length 20 --sample-every 0 --model.embedding-size 6"
COMMANDS: dict[str, tuple[str, ...]] = {
    "lstm": (OF_TEXT, "7 bottles of milk"),
    "gru": (f"{OF_TEXT} --model.cell gru --tokens word --sample-prompts milk",
            "bottles of milk in row"),
    "poems": (OF_POEMS, "avkab"),
    "poems_in_one_file": (f"{OF_POEMS} --model.cell gru --model.layers 2", "avkab"),
    CLASSIFIER: ("reviews --data data/reviews.csv --length 8 --vocabulary-size 20 "
                 "--vectors data/vectors.txt --patience 0 --model.dense-size 4",
                 "a dull film with no music", "a fine film with much music"),
}  # fmt: skip
"""How each was made, and what it is asked for: the beginning of a text, or reviews."""


def expectations_of(name: str) -> dict[str, Any]:
    """A loss and a greedy text of a language model; probabilities of a classifier."""
    model, params, vocabulary, config = lstm_jax.load(RUNS / name)
    _, *texts = COMMANDS[name]
    if name == CLASSIFIER:
        found = probabilities(model, params, vocabulary, config, texts, 2)
        return {"probabilities": [float(value) for value in found]}
    ids = jnp.asarray(vocabulary.encode_prompt(texts[0]))[:, None]
    sums, _ = model.token_sums(params, None, ids[:-1], ids[1:])
    template = np.full((24, 1), FREE)
    template[: len(ids)] = ids
    found = generate(model, params, template, key=jax.random.key(0), temperature=0.0)
    return {"loss": float(sums.loss / sums.weight), "tokens": found.row(0).tolist()}


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


def main() -> None:
    """Trains each run that is not there yet, and writes what is to be expected of it."""
    os.chdir(FIXTURES)  # so that no path of this machine gets into the runs
    expectations = Path("expected.json")
    expected = json.loads(expectations.read_text())
    for name, (line, *_) in COMMANDS.items():
        run = Path("runs") / name
        if run.exists():
            continue
        code = train_command(shlex.split(f"{line} {SMALL} --run-dir {run}"))
        if code:
            raise SystemExit(code)
        # Orbax writes where the folder lay into files that nothing reads.
        for file in (run / ".lock", run / "curves.png", *run.rglob("commit_success.txt")):
            file.unlink(missing_ok=True)
        expected[name] = expectations_of(name)
    expectations.write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()

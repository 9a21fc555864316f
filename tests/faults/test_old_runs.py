"""Run folders of earlier versions load, and give what they gave.

Each was made by the version whose format it is of, from the texts in `fixtures/data`, and stays as
it is. For a new one, train in `fixtures` with relative paths, delete its lock, its curves and each
`commit_success.txt`, in which Orbax wrote the folder's path, and add what `expectations_of` gives.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import task_of

import lstm_jax
from lstm_jax.sampling import FREE, generate
from lstm_jax.systems.reviews import probabilities
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.run import RunFolder
from lstm_jax.training.state import evaluate
from lstm_jax.training.task import restored_state

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = FIXTURES / "runs"
CLASSIFIER = "reviews"
TEXTS = {
    "lstm": ["7 bottles of milk"], "gru": ["bottles of milk in row"],
    "poems": ["avkab"], "poems_in_one_file": ["avkab"],
    CLASSIFIER: ["a dull film with no music", "a fine film with much music"],
}  # fmt: skip
"""What each is asked for: the beginning of a text, or reviews."""


def expectations_of(name: str) -> dict[str, Any]:
    """A loss and a greedy text of a language model; probabilities of a classifier."""
    model, params, vocabulary, config = lstm_jax.load(RUNS / name)
    texts = TEXTS[name]
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


@pytest.mark.parametrize("name", sorted(run.name for run in RUNS.iterdir()))
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
    state, _ = restored_state(task, CheckpointStore(folder.checkpoints))
    assert int(state.step) == 6
    rows = folder.metrics.read_bytes()
    MetricsLog(folder.metrics, 6).close()
    assert folder.metrics.read_bytes() == rows
    batches = [*task.system.heldout()][name in ("lstm", "gru") :]
    size = task.system.heldout_batch_size
    sums = evaluate(task.system.objective, state.params, batches, size)[""]
    last = read_rows(folder.metrics)[-1]["heldout_loss"]
    assert sums.loss / sums.weight == pytest.approx(last, rel=1e-5)


def test_a_run_with_a_file_of_vectors_is_refused_with_a_cure(tmp_path: Path) -> None:
    shutil.copyfile(FIXTURES / "reviews_with_a_file_of_vectors.json", tmp_path / "config.json")
    (tmp_path / "vectors.npy").touch()
    with pytest.raises(ValueError, match=r"older version.*vectors\.npy; train it anew"):
        lstm_jax.load(tmp_path)

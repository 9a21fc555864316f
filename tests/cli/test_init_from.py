"""`train.py --init-from RUN`: another run's weights, vocabulary and settings, for other data."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, Refusal, train_command
from core_cases import cases
from run_cases import unequal

from lstm_jax.classifier import ClassifierConfig
from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems import read_system
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig, ReviewsSystem
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder, create_run, refuse_other_data
from lstm_jax.training.task import first_state, make_task

SIZES: dict[str, Any] = {"batch_size": 2, "steps": 2, "sample_every": 0, "heldout_share": 0}
MODEL = LanguageModelConfig(hidden_size=4)
VECTORS = "\n".join(f"{word} 1 2 {n}" for n, word in enumerate(("milk", "wall", "shoe")))
LANGUAGE = LanguageConfig(preset="docs", model=MODEL, sequence_length=4, **SIZES)
CLASSIFIER = ClassifierConfig(hidden_size=4, embedding_size=3, dense_size=4)
REVIEWS = ReviewsConfig(preset="reviews", model=CLASSIFIER, **SIZES)
OLD = "the milk is in the row of the wall\n" * 9
NEW = "of milk the wall is the row\n" * 9 + "of milk the shoe is the row\n"
CASES: dict[str, TrainConfig] = {
    "characters": LANGUAGE,
    "words": replace(LANGUAGE, tokens="word"),
    "poems": PoemsConfig(preset="poems", model=MODEL, **SIZES),
    "frozen vectors": replace(REVIEWS, vectors=""),
    "reviews": REVIEWS,
    "trained vectors": replace(REVIEWS, vectors="", train_vectors=True),
}
QUICK = ("characters", "words", "poems", "frozen vectors")


def begin(config: TrainConfig, path: Path) -> tuple[Any, Any]:
    """A run of the config that was killed after its first checkpoint: its system and parameters."""
    system = read_system(config)
    state = first_state(make_task(system))
    create_run(RunFolder(path), system)
    CheckpointStore(path / "checkpoints").save(0, state, {})
    return system, state.params


def named(config: TrainConfig, folder: Path, name: str, text: str, **others: Any) -> Any:
    """The config with a file of such data."""
    path, lines = folder / f"{name}.txt", enumerate(text.splitlines())
    if isinstance(config, ReviewsConfig):
        path = path.with_suffix(".tsv")
        text = "\n".join(["text\tlabel", *(f"{line}\t{number % 2}" for number, line in lines)])
    elif isinstance(config, PoemsConfig):
        text = "\n".join(f"{number}:{line}{'milk'[: number % 4]}" for number, line in lines)
    path.write_text(text, encoding="utf-8")
    if getattr(config, "vectors", None) is not None:
        (folder / f"{name}-vectors.txt").write_text(VECTORS)
        others["vectors"] = str(folder / f"{name}-vectors.txt")
    return replace(config, data=str(path), **others)


@cases("case", CASES, *QUICK)
def test_a_run_begins_with_the_weights_and_vocabulary_of_another(case: str, tmp_path: Path) -> None:
    config = CASES[case]
    old_run, new_run = tmp_path / "old", tmp_path / "new"
    system, params = begin(named(config, tmp_path, "old", OLD), old_run)
    asked = named(system.config, tmp_path, "new", NEW, init_from=str(old_run), seed=1)
    found, begun = begin(asked, new_run)
    assert found.vocabulary == system.vocabulary
    assert found.sha256 != system.sha256
    assert unequal(begun, params) == []
    if case == "words":
        assert "shoe" not in found.vocabulary
        assert np.count_nonzero(found.corpus.ids == found.vocabulary.unknown) == 1
    shutil.rmtree(old_run)
    resumed: Any = read_system(found.config, new_run)
    assert resumed.vocabulary == system.vocabulary
    refuse_other_data(RunFolder(new_run), resumed)
    if isinstance(found, ReviewsSystem):
        assert all(map(np.array_equal, found.training.rows, resumed.training.rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    begin(named(LANGUAGE, folder, "old", OLD), folder / "run")
    (folder / "new.txt").write_text(NEW)
    return folder / "run"


def test_the_command_takes_the_other_run_s_settings_and_goes_on_by_itself(
    run: Path, call: Command, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []

    def train(_: object, state: Any, folder: RunFolder, *__: object, **___: object) -> Any:
        folder.metrics.write_text("")
        begun.append(state)
        return state

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.chdir(run.parent)
    options = ("--init-from", "run", "--data", "new.txt", "--run-dir", tmp_path / "new")
    assert call(train_command, *options, "--seed", 3, "--model.dropout", 0.1)[0] == 0
    config = json.loads((tmp_path / "new" / "config.json").read_text())["config"]
    assert (config["init_from"], config["seed"]) == (str(run), 3)
    assert config["model"] == asdict(replace(MODEL, dropout=0.1))
    store = CheckpointStore(run / "checkpoints", read_only=True)
    params = store.restore(begun[0].params, of="params").state
    assert unequal(begun[0].params, params) == []
    monkeypatch.chdir(tmp_path)
    err = refusal(train_command, *options, "--resume")  # from another folder: another run
    assert "init_from is" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "odd.txt"], "2 characters outside the vocabulary: 'X' (U+0058), 'é' (U+00E9)"),
        (["--model.hidden-size", "5"], "model.hidden_size is 5, the run has 4"),
        (["--tokens", "word"], "tokens is 'word', the run has 'char'"),
        (["anna"], "is a run of preset 'docs', not 'anna'"),
        (["--run-dir", "run"], "run exists already"),
        (["--init-from", "nothing"], "nothing is not a run folder"),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(
    arguments: list[str], said: str, run: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    Path("odd.txt").write_text(NEW + "éXé", encoding="utf-8")
    base = ["--init-from", "run", "--run-dir", "refused"]
    words = [*arguments, *base] if arguments == ["anna"] else [*base, *arguments]
    assert said in refusal(train_command, *words)
    assert not Path("refused").exists()

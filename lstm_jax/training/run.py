"""The run folder: what is in it, and how a trained model comes out of it.

config.json      the settings, and which text they were applied to
vocab.json       the tokens
corpus.txt       the text itself, where it is not a file of the user's
metrics.jsonl    one row a log step
checkpoints/     the training state, a folder a step
loss.png         the curves, where matplotlib is present
tensorboard/     events, where --tensorboard asked for them
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.text import Vocabulary
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.config import TrainConfig, from_dict, to_dict
from lstm_jax.training.corpus import PYTHON_DOCS, Corpus

FORMAT = 1

_CHANGEABLE = frozenset(
    [
        "data",
        "steps",
        "epochs",
        "devices",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_every",
        "sample_prompts",
        "sample_length",
        "sample_top_n",
        "sample_temperature",
        "corpus_on_device_mb",
        "model.dropout",
        "model.dropout_place",
        "model.compute_dtype",
        "model.backend",
        "model.unroll",
        "optimizer.learning_rate",
        "optimizer.schedule",
        "optimizer.warmup_steps",
        "optimizer.decay_steps",
        "optimizer.decay_rate",
        "optimizer.final_share",
        "optimizer.clip_norm",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.epsilon",
    ]
)


class RunFolder(NamedTuple):
    """The places in a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """Settings and data."""
        return self.path / "config.json"

    @property
    def vocabulary(self) -> Path:
        """Tokens."""
        return self.path / "vocab.json"

    @property
    def corpus(self) -> Path:
        """The run's own copy of a built-in text."""
        return self.path / "corpus.txt"

    @property
    def metrics(self) -> Path:
        """Rows of numbers."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training states."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, where they were asked for."""
        return self.path / "tensorboard"

    @property
    def plot(self) -> Path:
        """Curves."""
        return self.path / "loss.png"


class Description(NamedTuple):
    """What `config.json` says."""

    config: TrainConfig
    sha256: str


def create_run(folder: RunFolder, config: TrainConfig, corpus: Corpus) -> None:
    """Makes the folder and writes all but checkpoints and metrics; `config.json` comes last.

    Raises:
        ValueError: the folder exists and is not empty.
    """
    refuse_existing(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    corpus.vocabulary.save(folder.vocabulary)
    if config.data == PYTHON_DOCS:
        folder.corpus.write_text(corpus.text, encoding="utf-8")
    write_config(folder, config, corpus)


def refuse_existing(folder: RunFolder) -> None:
    """Raises ValueError where a new run would write over something."""
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise ValueError(
            f"{folder.path} exists already; go on with it (--resume), or name another --run-dir"
        )


def write_config(folder: RunFolder, config: TrainConfig, corpus: Corpus) -> None:
    """Writes `config.json`, whole or not at all."""
    described = {
        "format": FORMAT,
        "config": to_dict(config),
        "data": {"sha256": corpus.sha256, "characters": len(corpus.text)},
    }
    temporary = folder.config.with_suffix(".tmp")
    temporary.write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, folder.config)


def read_description(folder: RunFolder) -> Description:
    """Reads `config.json`.

    Raises:
        ValueError: it is no run folder, or its config is damaged or of a newer version.
    """
    if not folder.config.is_file():
        raise ValueError(
            f"{folder.path} is not a run folder (it has no config.json); "
            "make one with train.py --run-dir, or name another"
        )
    try:
        described = json.loads(folder.config.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']!r}, this version reads {FORMAT}")
        return Description(from_dict(described["config"]), str(described["data"]["sha256"]))
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder.config} cannot be used: {reason}; restore it") from None


def refuse_changes(folder: RunFolder, asked: TrainConfig) -> None:
    """Raises ValueError if a resumed run would differ in what its checkpoints depend on."""
    kept = _flat(to_dict(read_description(folder).config))
    changed = [
        f"{name} is {value!r}, the run has {kept[name]!r}"
        for name, value in _flat(to_dict(asked)).items()
        if name not in _CHANGEABLE and value != kept[name]
    ]
    if changed:
        raise ValueError(
            f"cannot resume {folder.path} with other settings: {'; '.join(changed)}; "
            "leave these as they were, or start a new run"
        )


def refuse_other_data(folder: RunFolder, corpus: Corpus) -> None:
    """Raises ValueError if the text or its vocabulary is not the run's."""
    if read_description(folder).sha256 != corpus.sha256:
        raise ValueError(
            f"the text is not the one that {folder.path} was trained on (its SHA-256 differs); "
            "name the old text with --data, or start a new run"
        )
    if Vocabulary.load(folder.vocabulary) != corpus.vocabulary:
        raise ValueError(
            f"{folder.vocabulary} is not the vocabulary of the run's text; restore it, or start a "
            "new run"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def load(
    run_dir: str | os.PathLike[str], *, step: int | None = None
) -> tuple[LanguageModel, LanguageModelParams, Vocabulary]:
    """Loads a trained model, without its optimizer, for use in other code.

    Args:
        run_dir: a folder that `train.py` made.
        step: which checkpoint; None for the newest good one.

    Returns:
        The model, its parameters, and the vocabulary that turns text into its ids.

    Raises:
        ValueError: it is no run folder, or it has no such checkpoint.
    """
    folder = RunFolder(Path(run_dir))
    config = read_description(folder).config
    vocabulary = Vocabulary.load(folder.vocabulary)
    model = LanguageModel(config.model, len(vocabulary))
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        template = jax.eval_shape(model.init, random.key(0))
        saved = store.restore_params(template, step=step)
    return model, saved.state, vocabulary

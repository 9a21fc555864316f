"""Sizes that no machine has room for are refused by name, before anything is made of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lstm_jax import Classifier, LanguageModel
from lstm_jax.classifier import ClassifierConfig
from lstm_jax.cli.arguments import run_command
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.models import LanguageModelConfig
from lstm_jax.presets import DOCS, POEMS, REVIEWS
from lstm_jax.training.config import OptimizerConfig, SampleConfig
from lstm_jax.training.systems import read_system
from lstm_jax.training.task import make_task

HUGE = 10**30


@pytest.mark.parametrize("name", ["layers", "hidden_size", "unroll", "embedding_size"])
def test_a_model_has_no_huge_size(name: str) -> None:
    values: dict[str, Any] = {name: HUGE}
    with pytest.raises(ValueError, match=rf"^{name} is 1000.*it must be at most"):
        LanguageModelConfig(**values)
    with pytest.raises(ValueError, match=rf"^{name} is 1000.*it must be at most"):
        ClassifierConfig(**values)


def test_the_largest_sizes_are_sizes() -> None:
    config = LanguageModelConfig(layers=128, hidden_size=2**16, embedding_size=2**16)
    assert LanguageModel(config, 9).config == config
    assert Classifier(ClassifierConfig(dense_size=2**16), 9).config.dense_size == 2**16


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DOCS, "batch_size"),
        (DOCS, "steps"),
        (DOCS, "log_every"),
        (DOCS, "patience"),
        (DOCS, "sequence_length"),
        (DOCS, "corpus_on_device_mb"),
        (POEMS, "length"),
        (POEMS, "widths"),
        (REVIEWS, "vocabulary_size"),
        (OptimizerConfig(), "warmup_steps"),
        (OptimizerConfig(), "decay_steps"),
        (SampleConfig(), "length"),
        (SampleConfig(), "top_n"),
    ],
)
def test_settings_fit_the_device_s_integers(config: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is 1000.*it must be at most"):
        dataclasses.replace(config, **{name: HUGE})


def test_settings_fit_the_device_s_floats() -> None:
    with pytest.raises(ValueError, match=r"learning_rate is 1e\+300; it must be at most"):
        OptimizerConfig(learning_rate=1e300)


@pytest.mark.parametrize("name", ["length", "batch", "best_of", "beams", "side_by_side"])
def test_sampling_has_no_huge_number(name: str) -> None:
    values: dict[str, Any] = {name: HUGE}
    with pytest.raises(ValueError, match=rf"^{name} is 1000.*it must be at most"):
        SampleCommand(Path("run"), **values)


def test_texts_side_by_side_fit_the_memory() -> None:
    SampleCommand(Path("run"), length=4_000_000, batch=64)
    with pytest.raises(ValueError, match="640,000,000 tokens of texts side by side"):
        SampleCommand(Path("run"), length=10_000_000, batch=64)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("0123456789\n" * 500)
    config = dataclasses.replace(
        DOCS,
        data=str(tmp_path / "text.txt"),
        model=LanguageModelConfig(hidden_size=2**16, layers=9),
    )
    with pytest.raises(ValueError, match=r"parameters, which take .* GB in training"):
        make_task(read_system(config))


def test_more_steps_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("0123456789\n" * 5_000)
    config = dataclasses.replace(DOCS, data=str(tmp_path / "text.txt"), epochs=2**31 - 1)
    with pytest.raises(ValueError, match="lower epochs or set steps"):
        make_task(read_system(config))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")]
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    assert run_command("command", command) == 2
    said = capsys.readouterr().err
    assert said.startswith("command: error: there is not enough memory (")
    assert said.count("\n") == 1


def test_other_errors_at_run_time_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(arguments: Sequence[str]) -> int:
        raise RuntimeError("INTERNAL: a defect")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(RuntimeError, match="INTERNAL"):
        run_command("command", command)

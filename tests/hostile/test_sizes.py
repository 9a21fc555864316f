"""Sizes that no machine has room for are refused by name, before anything is made of them."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from lstm_jax import Classifier, LanguageModel
from lstm_jax.classifier import ClassifierConfig
from lstm_jax.cli.console import run_command
from lstm_jax.cli.options import SampleCommand
from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems import read_system
from lstm_jax.systems.base import OptimizerConfig
from lstm_jax.systems.language import DOCS
from lstm_jax.training.task import make_task


def test_a_huge_size_is_refused_by_name() -> None:
    """As those in files of settings are, and those of layers and models."""
    for name in ("length", "batch", "best_of", "beams", "side_by_side"):
        with pytest.raises(ValueError, match=rf"^{name} is 10{{30}}; it must be at most"):
            SampleCommand(Path("run"), **{name: 10**30})
    with pytest.raises(ValueError, match=r"^learning_rate is 1e\+300; it must be at most"):
        OptimizerConfig(learning_rate=1e300)


def test_the_largest_sizes_are_sizes() -> None:
    config = LanguageModelConfig(layers=128, hidden_size=2**16, embedding_size=2**16)
    assert LanguageModel(config, 9).config == config
    assert Classifier(ClassifierConfig(dense_size=2**16), 9).config.dense_size == 2**16


HUGE = LanguageModelConfig(hidden_size=2**16, layers=9)


def test_texts_side_by_side_fit_the_memory() -> None:
    SampleCommand(Path("run"), length=4_000_000, batch=64)
    with pytest.raises(ValueError, match="640,000,000 tokens of texts side by side"):
        SampleCommand(Path("run"), length=10_000_000, batch=64)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": HUGE}, r"parameters, which take .* GB in training"),  # before they are drawn
        ({"epochs": 2**31 - 1}, "lower epochs or set steps"),
    ],
)
def test_more_than_fits_or_can_be_counted_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("0123456789\n" * 5_000)
    config = replace(DOCS, data=str(tmp_path / "text.txt"), **changes)
    with pytest.raises(ValueError, match=said):
        make_task(read_system(config))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")]
)
def test_too_little_memory_is_one_line_and_other_errors_are_not_hidden(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])
    assert run_command("command", Mock(side_effect=error)) == 2
    said = capsys.readouterr().err
    assert said.startswith("command: error: there is not enough memory (")
    assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="INTERNAL"):
        run_command("command", Mock(side_effect=RuntimeError("INTERNAL: a defect")))

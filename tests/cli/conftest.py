"""Calls commands in this process."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import SMALL, Command, Outcome, Refusal, train_command
from run_cases import TEXT

from lstm_jax.cli.console import run_command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(command: Callable[[Sequence[str]], int], *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        code = run_command("command", command)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refusal(call: Command) -> Refusal:
    def refusal(*command: object) -> str:
        code, out, err = call(*command)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("command: error: ")
        return err

    return refusal


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run of 12 steps, which no test changes; beside it a trace, and what was printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    line = f"--data {text_file} --run-dir {run} --tensorboard --profile {run.parent}/trace"
    with open(run.parent / "out", "w") as out, contextlib.redirect_stdout(out):
        assert train_command([*line.split(), "--sample-prompts", "7 bottles", *SMALL]) == 0
    return run

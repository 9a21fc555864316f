"""Puts the folder of what the tests share on the path, and calls commands in this process."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lstm_jax.cli.console import run_command

sys.path.append(str(Path(__file__).parent))

from commands import Command, Outcome


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(command: Callable[[Sequence[str]], int], *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        code = run_command("command", command)
        return code, *capsys.readouterr()

    return call

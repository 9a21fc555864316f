"""What tests of weights share: runs, and commands in this process."""

import shlex
import sys
from pathlib import Path

import pytest
from interop_cases import Command, Outcome

from lstm_jax.cli.main import PROG, main, train_command

SMALL = "--model.hidden-size 6 --batch-size 4 --log-every 1 --evaluate-every 0 --checkpoint-every 0"
OF_WORDS = "--sequence-length 8 --steps 2 --sample-every 0 --model.embedding-size 5"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls `lstm-jax` with arguments: exit code, standard output, standard error."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [PROG, *map(str, arguments)])
        capsys.readouterr()
        code = main()
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: `words`, a model with an unknown word, and `reviews`, a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    text, reviews = folder / "text.txt", folder / "reviews.tsv"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40 + "once", encoding="utf-8")
    lines = ["review\tlabel", *(["good film\t1", "bad film\t0"] * 12)]
    reviews.write_text("\n".join(lines), encoding="utf-8")
    for preset, data, options in (
        ("shakespeare", text, shlex.split(OF_WORDS)),
        ("reviews", reviews, ["--epochs", "1"]),
    ):
        name = "words" if data is text else "reviews"
        words = [preset, "--data", str(data), "--run-dir", str(folder / name), *options]
        assert train_command([*words, *shlex.split(SMALL)]) == 0
    return folder

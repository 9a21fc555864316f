"""`train.py --wandb`: offline runs of Weights & Biases, and how it refuses."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Refusal, train_command

from lstm_jax.training.log import read_rows

SMALL = shlex.split(
    "--model.hidden-size 6 --batch-size 4 --sequence-length 8 --steps 4 --log-every 2 "
    "--evaluate-every 0 --checkpoint-every 0 --sample-every 4 --sample.length 5"
)
PROMPT = "../the <x>"


@pytest.fixture
def base(tmp_path: Path) -> list[object]:
    text = tmp_path / "text.txt"
    text.write_text(f"{PROMPT} quick brown fox jumps over the lazy dog\n" * 40, encoding="utf-8")
    return ["--data", text, "--run-dir", tmp_path / "run", "--sample-prompts", PROMPT, *SMALL]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """No account, and nothing written but under the test's folder."""
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    import wandb

    wandb.teardown()
    yield wandb
    wandb.teardown()


@pytest.mark.slow
def test_an_offline_run_holds_rows_and_samples_and_a_resumed_one_goes_on_with_it(
    call: Command, base: list[object], at_home: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert call(train_command, *base, "--checkpoint-every", 2, "--wandb")[0] == 0
    # Its own process writes the file, and may go on after the run is over.
    at_home.teardown()
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    first, content = log.parent, log.read_bytes()
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    for name in ("heldout_loss", "hidden_size", "lstm_jax", json.dumps(rows[-1]["loss"])):
        assert name.encode() in content
    (sample,) = first.rglob("*.html")
    assert sample.is_relative_to(first / "files" / "media")
    assert sample.read_text(encoding="utf-8").startswith("<pre>../the &lt;x&gt;")
    # As if it had been killed before the checkpoint of step 4: that step is taken again.
    shutil.rmtree(run / "checkpoints" / "4")
    assert call(train_command, "--run-dir", run, "--resume", "--steps", 6, "--wandb")[0] == 0
    at_home.teardown()
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6]
    (second,) = set(run.glob("wandb/offline-run-*/*.wandb")) - {log}
    assert second.name == log.name
    losses = [json.dumps(row["loss"]).encode() for row in rows]
    assert [loss in log.read_bytes() for loss in losses] == [True, True, False]
    assert [loss in second.read_bytes() for loss in losses] == [False, False, True]
    for folder in (first, second.parent):
        assert len(list(folder.rglob("*.html"))) == 1


def test_no_account_is_one_line_and_writes_nothing(
    refusal: Refusal, base: list[object], at_home: Any, tmp_path: Path
) -> None:
    err = refusal(train_command, *base, "--wandb")
    assert "wandb login" in err and "WANDB_MODE=offline" in err
    assert not (tmp_path / "run").exists()


def test_without_wandb_the_error_names_the_cure(
    refusal: Refusal, base: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'lstm-jax[wandb]'" in refusal(train_command, *base, "--wandb")
    assert not (tmp_path / "run").exists()

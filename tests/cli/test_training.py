"""`train.py` as a user types it: what it writes, and how it refuses."""

import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import SMALL, Command, Refusal, train_command
from core_cases import cases
from processes import ROOT
from run_cases import TEXT, snapshot

import lstm_jax
from lstm_jax.cli import train
from lstm_jax.cli.train import signals
from lstm_jax.sampling import score
from lstm_jax.systems import downloads
from lstm_jax.systems.language import LanguageSystem
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, held


def test_a_run_shows_and_holds_what_is_promised(trained: Path) -> None:
    shown = (trained.parent / "out").read_text()
    for said in ("step 12/12", "held out", "\n7 bottles", f"saved step 12 in {trained}"):
        assert said in shown
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "vocab.json", "metrics.jsonl", "checkpoints", "curves.png"} <= names
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"6", "12"}
    assert [row["step"] for row in read_rows(trained / "metrics.jsonl")] == [4, 6, 8, 12]
    config = json.loads((trained / "config.json").read_text())["config"]
    assert (config["model"]["hidden_size"], config["steps"]) == (16, 12)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (trained / "tensorboard").iterdir()
    assert all(name in events.read_bytes() for name in (b"heldout_loss", b"sample/"))
    assert list((trained.parent / "trace").rglob("*.xplane.pb"))


def test_the_loop_eval_only_and_score_give_one_held_out_loss(call: Command, trained: Path) -> None:
    """Of each held-out lane, as what goes on from the text before it."""
    model, params, vocabulary, _ = lstm_jax.load(trained)
    times, held_out = 20, round(0.05 * len(TEXT))
    bounds = len(TEXT) - held_out + np.arange(5) * held_out // 4
    ids = vocabulary.encode(TEXT)
    lanes = [ids[first:last] for first, last in itertools.pairwise(bounds)]
    contexts = [ids[first - times - 1 : first] for first in bounds[:-1]]
    found = score(model, params, lanes, contexts=contexts)
    loss = -sum(each.log_likelihood for each in found) / held_out
    logged = read_rows(trained / "metrics.jsonl")[-1]["heldout_loss"]
    before = snapshot(trained)
    code, out, _ = call(train_command, "--run-dir", trained, "--eval-only")
    printed = json.loads(out)
    assert (code, printed["step"]) == (0, 12)
    assert loss == pytest.approx(logged, rel=1e-5)
    assert printed["heldout_loss"] == pytest.approx(logged, rel=1e-6)
    assert snapshot(trained) == before
    with pytest.raises(ValueError, match=r"no checkpoint of step 0 .* there are 6, 12"):
        lstm_jax.load(trained, step=0)


def test_a_run_on_two_devices_is_the_run_on_one_and_can_go_on_there(
    call: Command, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begin, resume = ("--data", text_file, "--run-dir", run), ("--run-dir", run, "--resume")
    for arguments, said in (
        ((*begin, *SMALL, "--devices", 2), "2 x cpu"),
        ((*resume, "--devices", 1, "--steps", 14), "resumed at step 12"),
        (resume, "saved step 14"),
    ):
        code, out, err = call(train_command, *arguments)
        assert (code, err, said in out) == (0, "", True)
    *losses, last = ((row["step"], row["loss"]) for row in read_rows(run / "metrics.jsonl"))
    alone = [(row["step"], row["loss"]) for row in read_rows(trained / "metrics.jsonl")]
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
    assert last[0] == 14


def test_the_default_preset_has_a_corpus(call: Command, refusal: Refusal, tmp_path: Path) -> None:
    small = [*SMALL, "--steps", "1", "--sample-every", "0"]
    assert call(train_command, "--run-dir", tmp_path / "run", *small)[0] == 0
    text = (tmp_path / "run" / "corpus.txt").read_text(encoding="utf-8")
    assert "statement" in text
    (tmp_path / "run" / "corpus.txt").write_text(text[:-100], encoding="utf-8")
    assert "SHA-256" in refusal(train_command, "--run-dir", tmp_path / "run", "--resume")


BAD = [
    (["--data", "none.txt"], "none.txt' does not exist"),
    (["--data", "."], "must hold one file with 'train' in its name"),
    (["--data", "empty.txt"], "empty"),
    (["--data", ""], "--data is empty"),
    (["--run-dir="], "--run-dir is empty"),
    (["--data", "binary.bin"], "binary.bin"),
    (["--data", "short.txt"], "smaller batch size"),
    (["--sample-prompts", "Ω"], "U+03A9"),
    (["--batch-size", "0"], "batch_size is 0"),
    (["--optimizer.learning-rate", "nan"], "learning_rate is nan"),
    (["--epochs"], "--epochs"),
    (["--devices", "64"], "devices is 64"),
    (["--devices", "2", "--batch-size", "3"], "multiple"),
    (["--resume"], "not a run folder"),
    (["--eval-only"], "not a run folder"),
    (["--run-dir", "my\\run"], "backslash"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: list[str], said: str, refusal: Refusal, text_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("binary.bin").write_bytes(b"\x00\x01\x02" * 999)
    Path("short.txt").write_text("too short for one batch of text. ")
    before = snapshot(tmp_path)
    base = ["--data", text_file, "--run-dir", "run", *SMALL]
    assert said in refusal(train_command, *base, *arguments)
    assert snapshot(tmp_path) == before


def test_what_cannot_be_resumed_is_refused_by_name(refusal: Refusal, trained: Path) -> None:
    before, run = snapshot(trained), ("--run-dir", trained)
    assert "--resume" in refusal(train_command, *run)  # the folder exists
    for flags, said in (
        ("--model.hidden-size 32", "model.hidden_size is 32, the run has 16"),
        ("--optimizer.method sgd", "optimizer.method is 'sgd', the run has 'adam'"),
        ("--weight-decay 1e-3", "optimizer.weight_decay is 0.001, the run has 0.0"),
        ("--average-after 2", "optimizer.average_after is 2, the run has 0"),
    ):
        err = refusal(train_command, *run, "--resume", *flags.split())
        assert said in err and f"--init-from {trained} --run-dir" in err
    assert "preset 'docs', not 'anna'" in refusal(train_command, "anna", *run, "--resume")
    assert snapshot(trained) == before


def test_a_folder_in_use_is_refused(refusal: Refusal, text_file: Path, tmp_path: Path) -> None:
    """The system keeps a lock for an open file, so this process stands for another."""
    run = tmp_path / "run"
    with held(RunFolder(run)):
        err = refusal(train_command, "--data", text_file, "--run-dir", run, *SMALL)
        assert "another process is training in" in err
        assert not (run / "config.json").exists()


FILES = {"anna": "anna.txt", "shakespeare": "tinyshakespeare.txt", "reviews": "aclImdb_v1.tar.gz"}


@pytest.mark.parametrize("preset", ["poems", "lyrics", *FILES])
def test_data_that_is_not_there_is_asked_for(
    preset: str, call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {
        name: source._replace(url=f"http://127.0.0.1:9/{source.file_name}")
        for name, source in downloads.SOURCES.items()
    }
    monkeypatch.setattr(downloads, "SOURCES", nowhere)
    monkeypatch.setenv("LSTM_JAX_CACHE", str(tmp_path / "cache"))
    code, _, err = call(train_command, preset, "--run-dir", tmp_path / "run")
    *told, error = err.splitlines()
    assert (code, "--data PATH" in error) == (2, True)
    assert [line.split()[0] for line in told] == ["downloading"] * (preset in FILES)
    assert preset not in FILES or str(tmp_path / "cache" / FILES[preset]) in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def default_signals() -> Iterator[None]:
    """The tests may be run under nohup, or in a shell's background, themselves."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_state_and_sets_the_exit_code(
    number: signal.Signals, text_file: Path, tmp_path: Path, call: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def samples(system: Any, params: Any, step: int) -> Iterator[tuple[str, str]]:
        signal.raise_signal(number)
        if number == signal.SIGHUP:
            signal.raise_signal(number)  # a closed terminal's second one
        yield "7", "7 bottles"

    monkeypatch.setattr(LanguageSystem, "samples", samples)
    run = tmp_path / "run"
    options = ("--data", text_file, "--run-dir", run, *SMALL, "--sample-every", 6)
    code, out, err = call(train_command, *options)
    assert (code, err) == (128 + number, "stopping: the state is being saved\n")
    saved = max(int(p.name) for p in (run / "checkpoints").iterdir())
    assert f"saved step {saved} in" in out
    assert 6 <= saved < 12


@pytest.mark.usefixtures("default_signals")
def test_a_second_signal_ends_it_and_nohup_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(train, "leave", sys.exit)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with signals() as caught:
        signal.raise_signal(signal.SIGHUP)
        assert not caught
        signal.raise_signal(signal.SIGTERM)
        assert caught
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


INTERRUPTED = """
import os, runpy, signal, sys
_, module, *sys.argv = sys.argv
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["train.py --resume --run-dir", "sample.py"])
@cases("module", ["orbax.checkpoint", "lstm_jax"], "orbax.checkpoint")
def test_ctrl_c_during_imports_is_quiet(script: str, module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module, *script.split(), "no-such-run"]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")

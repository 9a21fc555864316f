"""`train.py --resume` from another folder, over another schedule, under JAX's other switches."""

import json
import shlex
from pathlib import Path

import jax
import pytest
from commands import Command, Refusal, train_command
from run_cases import TEXT, snapshot

from lstm_jax.cli.train_options import read_arguments
from lstm_jax.systems import preset_named
from lstm_jax.systems.language import LanguageSystem
from lstm_jax.training import loop
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, held

SMALL = shlex.split(
    "--model.hidden-size 4 --batch-size 2 --sequence-length 8 --steps 4 --log-every 1 "
    "--checkpoint-every 2 --sample-every 0 --heldout-share 0 --optimizer.warmup-steps 0"
)
NEW = ("--data", "texts/my.txt", "--run-dir", "run", *SMALL)
RESUME = ("--run-dir", "run", "--resume")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the folder `here`, which is the current one."""
    path = tmp_path / "here" / "texts" / "my.txt"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT[:2500])
    monkeypatch.chdir(tmp_path / "here")
    return path


def test_a_run_finds_its_text_from_any_folder_and_in_one_that_was_moved(
    data: Path, call: Command, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "here" / "run"
    assert call(train_command, *NEW)[0] == 0
    assert json.loads((run / "config.json").read_text())["config"]["data"] == str(data)
    (tmp_path / "my.txt").write_text("of another text\n" * 60)
    monkeypatch.chdir(tmp_path)
    resume = ("--resume", "--run-dir")
    assert call(train_command, *resume, run)[0] == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert "SHA-256" in refusal(train_command, *resume, "there/run")  # ./my.txt is not the run's
    monkeypatch.chdir(tmp_path / "there")
    assert call(train_command, *resume, "run")[0] == 0
    moved = tmp_path / "there" / "texts" / "my.txt"
    assert json.loads(Path("run/config.json").read_text())["config"]["data"] == str(moved)
    err = refusal(train_command, "--data", "/nowhere/texts/my.txt", *SMALL)  # of a new run
    assert "'/nowhere/texts/my.txt' does not exist" in err


def test_a_run_goes_on_over_another_schedule_which_is_told(
    data: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with jax.numpy_dtype_promotion("strict"):
        assert "learning rate goes" not in call(train_command, *NEW)[1]
        before = read_rows(Path("run/metrics.jsonl"))[-1]["learning_rate"]
        after = preset_named("docs").optimizer.learning_rate / 2  # in the middle of a cosine
        monkeypatch.setattr(loop, "train", lambda _, state, *__, **___: state)
        for flags, told in (
            ("--steps 4", ""),
            ("--steps 8", f"from {before:.3g} to {after:.3g} here: steps is 8, was 4\n"),
            ("--steps 8 --learning-rate 1e-4", "here: learning_rate is 0.0001, was 0.008\n"),
            (
                "--steps 12 --schedule constant",
                "here: schedule is constant, was cosine; steps is 12, was 8\n",
            ),
        ):
            code, out, err = call(train_command, *RESUME, *flags.split())
            assert (code, err) == (0, "")
            assert ("the learning rate goes" in out) == bool(told)
            assert told in out
    assert read_arguments(RESUME).config.steps == 12
    config = read_arguments([*RESUME, "--epochs", "2"]).config
    assert (config.epochs, config.steps) == (2, None)
    assert read_arguments([*RESUME, "--epochs", "2", "--steps", "7"]).config.steps == 7


def test_a_run_goes_on_with_the_random_numbers_that_it_began_with(
    data: Path, call: Command
) -> None:
    drawn = shlex.split("--dropout 0.5 --dropout-place outputs --schedule constant")
    drawn += shlex.split("--sample-every 4 --sample.length 9 --sample-prompts milk")
    new, resume = (*NEW, *drawn), ("--resume", "--steps", 8)
    with jax.default_prng_impl("rbg"):
        whole = call(train_command, *new, "--run-dir", "whole", "--steps", 8)[1]
        call(train_command, *new)
    cut = call(train_command, *RESUME, *resume)[1]
    for one, other in zip(
        *(read_rows(Path(n, "metrics.jsonl")) for n in ("whole", "run")), strict=True
    ):
        assert one["loss"] == other["loss"]
    wanted, found = (
        out.rpartition("sample at step 8")[2].partition("saved")[0] for out in (whole, cut)
    )
    assert found == wanted != ""


def test_a_run_past_its_end_is_refused(data: Path, call: Command, refusal: Refusal) -> None:
    assert call(train_command, *NEW)[0] == 0
    before = snapshot(Path("run"))
    for flags in (["--steps", 3], ["--steps", 3, "--epochs", 50]):
        err = refusal(train_command, *RESUME, *flags)
        assert "run is at step 4, past step 3, where it is to end: there is nothing to do" in err
        assert snapshot(Path("run")) == before
    code, out, err = call(train_command, *RESUME)
    assert (code, err) == (0, "")
    assert "saved step 4" in out
    assert json.loads(Path("run/config.json").read_text())["config"]["steps"] == 4


@pytest.mark.parametrize("existed", [False, True])
def test_a_run_that_fails_at_its_first_step_leaves_nothing(
    existed: bool, data: Path, call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def feed(_: LanguageSystem) -> object:
        assert Path("runs/new/run/config.json").exists()
        raise ValueError("the device is out of order")

    monkeypatch.setattr(LanguageSystem, "feed", feed)
    if existed:
        Path("runs/new/run").mkdir(parents=True)
    before = snapshot(tmp_path / "here")
    options = ("--data", data, "--run-dir", "runs/new/run", *SMALL, "--tensorboard")
    code, _, err = call(train_command, *options)
    assert (code, err) == (2, "command: error: the device is out of order\n")
    assert snapshot(tmp_path / "here") == before


def test_a_run_that_fails_later_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.metrics.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="out of order"), held(folder, new=True):
        raise ValueError("the device is out of order")
    assert folder.metrics.exists()

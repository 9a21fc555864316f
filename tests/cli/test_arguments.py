"""How a command line is read: flags by their last part, texts with dashes, hints, and help."""

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import sample_command
from processes import ROOT

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.options import SAMPLE_HELP, ClassifyCommand, ConvertCommand, SampleCommand
from lstm_jax.cli.train_options import HELP, read_arguments
from lstm_jax.systems import presets

PRESETS = [preset.preset for preset in presets()]


def read(*arguments: str) -> SampleCommand:
    return parse(SampleCommand, None, ["run", *arguments], "sample.py")


@pytest.mark.parametrize("text", ["--the", "-the", "-5", "--", "---*---", "--the=cat", "--help-me"])
def test_whatever_takes_a_text_takes_dashes(text: str) -> None:
    assert read("--seed", "3", "--prompt", text, "--greedy").prompt == text
    assert read("--template=" + text).template == text
    assert read("--forbid", text).forbid == text
    assert read("--stop", text, "b").stop == (text, "b")
    assert read("--score", text).score == Path(text)
    flags = ["--data", text, "--run-dir", text, "--sample-prompts", text, "b", "--layers", "2"]
    command: Any = read_arguments(flags)
    assert (command.config.data, command.config.model.layers) == (text, 2)
    assert (command.config.sample_prompts, command.run_dir) == ((text, "b"), Path(text))
    converted = parse(ConvertCommand, None, ["a.pt", "b.safetensors", "--rnn", text], "convert")
    assert converted.rnn == text


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["--prompt", "--greedy"], "--prompt=--greedy"),
        (["--stop", "a", "--x"], "--stop=--x"),
        (["--promt", "x"], "did you mean --prompt or --prompts; see sample.py --help"),
        (["--temp", "1"], "--temperature"),
        (["-prompt", "x"], "--prompt"),
        (["--topn", "3"], "--top-n"),
    ],
)
def test_an_unknown_flag_or_a_text_like_one_gets_a_hint(arguments: list[str], cure: str) -> None:
    with pytest.raises(ValueError, match=re.escape(cure)):
        read(*arguments)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--hidden-sise", "--model.hidden-size"),
        ("--hidden-dim", "--model.hidden-size"),
        ("--learningrate=3", "--optimizer.learning-rate"),
        ("--optimiser.learning-rate", "--optimizer.learning-rate"),
        ("--lr", "--optimizer.learning-rate"),
        ("--num-layers", "--model.layers"),
        ("--epoch", "--epochs"),
        ("--resum", "--resume"),
        ("--use-bias", "--model.no-use-bias"),
        ("--no-bidirectional", "--model.bidirectional"),
    ],
)
def test_a_close_spelling_names_the_flag(argument: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {re.escape(meant)}\\b.*--help-all$"):
        read_arguments([argument])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_flag_of_a_group_goes_by_its_last_part(preset: str) -> None:
    flags = "learning-rate=0.1", "hidden-size=3", "embedding_size=3", "no-use-bias"
    short = [f"--{flag}" for flag in flags]
    full = [f"--{'model' if n else 'optimizer'}.{flag}" for n, flag in enumerate(flags)]
    assert read_arguments([preset, *short]) == read_arguments([preset, *full])


def test_a_preset_is_the_first_word_or_a_flag_and_never_passed_over() -> None:
    flag = read_arguments(["--steps", "3", "--preset", "anna"])
    assert flag == read_arguments(["anna", "--steps", "3"])
    for arguments in (["--steps", "3", "anna"], ["docs", "--preset", "anna"]):
        with pytest.raises(ValueError, match=r"comes first: train\.py anna"):
            read_arguments(arguments)
    with pytest.raises(ValueError, match=f"no preset 'anne'; choose one of {', '.join(PRESETS)}"):
        read_arguments(["anne"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [10, 40, 200])
def test_an_error_is_the_message_alone_in_any_width_and_encoding(
    encoding: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(ValueError, match=r"^Unrecognized options: --qqq, 3; see train.py --help-"):
        read_arguments(["--qqq", "3"])
    with pytest.raises(ValueError, match=r"^Error parsing --seed: .*'x'; see train.py --help-all$"):
        read_arguments(["--seed", "x"])
    with pytest.raises(ValueError, match=r"did you mean --batch-size; see classify --help$"):
        parse(ClassifyCommand, None, ["run", "--batchsize", "3"], "classify")


def help_of(read: Any, *arguments: str) -> str:
    page = io.StringIO()
    with contextlib.redirect_stdout(page), pytest.raises(SystemExit) as exit:
        read(arguments)
    assert not exit.value.code
    return page.getvalue()


@pytest.mark.parametrize("preset", [[], *([preset] for preset in PRESETS)])
def test_help_names_presets_and_flags_that_every_preset_has(preset: list[str]) -> None:
    assert help_of(read_arguments, *preset, "--resume", "-h") == HELP.format(prog="train.py") + "\n"
    assert re.findall(r"^  (\w+) ", HELP, re.MULTILINE) == PRESETS
    flags = re.findall(r"^  (--[a-z-]+) [A-Z]+ ", HELP, re.MULTILINE)
    assert len(flags) == 8
    values = (("--layers", "2") if flag == "--layers" else (flag, "256") for flag in flags)
    read_arguments([*preset, *itertools.chain(*values)])


def test_all_flags_are_a_page_of_their_own() -> None:
    page = help_of(read_arguments, "poems", "--help-all")
    assert "--checkpoint-every INT" in page and "--sample-templates" in page
    page = help_of(read_arguments, "--eval-only", "--help-all")
    assert "--sequence-length INT" in page and "--model.hidden-size INT" in page
    assert "own-samples" not in page
    page = help_of(sample_command, "--help-all")
    flags = re.findall(r"^  (--[a-z-]+) ", SAMPLE_HELP, re.MULTILINE)
    assert len(flags) == 10
    assert all(f" {flag} " in page for flag in flags)


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_is_a_page_and_needs_no_accelerator(script: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / script, "--help"]
    environment = os.environ | {"JAX_PLATFORMS": "none such"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    assert list(tmp_path.iterdir()) == []

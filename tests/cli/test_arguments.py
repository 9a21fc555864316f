"""How a command line is read: flags by their last part, texts with dashes, hints, and help."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.main import sample_command
from lstm_jax.cli.options import SAMPLE_HELP, ClassifyCommand, ConvertCommand, SampleCommand
from lstm_jax.cli.train_options import HELP, read_arguments
from lstm_jax.systems import PRESETS


def read(*arguments: str) -> SampleCommand:
    return parse(SampleCommand, None, ["run", *arguments], "sample.py")


@pytest.mark.parametrize("text", ["--the", "-the", "-5", "--", "---*---", "--the=cat", "--help-me"])
def test_a_text_may_begin_with_dashes(text: str) -> None:
    assert read("--seed", "3", "--prompt", text, "--greedy").prompt == text
    assert read("--template=" + text).template == text


def test_whatever_takes_a_text_takes_dashes() -> None:
    text = "--the"
    assert read("--forbid", text).forbid == text
    assert read("--stop", text, "b").stop == (text, "b")
    assert read("--score", text).score == Path(text)
    command = read_arguments(["--data", text, "--sample-prompts", text, "b", "--layers", "2"])
    assert (command.config.data, command.config.model.layers) == (text, 2)
    assert getattr(command.config, "sample_prompts", None) == (text, "b")
    converted = parse(ConvertCommand, None, ["a.pt", "b.safetensors", "--rnn", text], "convert")
    assert converted.rnn == text


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["--prompt", "--greedy"], "--prompt=--greedy"),
        (["--stop", "a", "--x"], "--stop=--x"),
        (["--promt", "x"], "did you mean --prompt or --prompts"),
        (["--temp", "1"], "--temperature"),
        (["-prompt", "x"], "--prompt"),
        (["--topn", "3"], "--top-n"),
    ],
)
def test_a_flag_that_is_none_and_a_text_that_is_one_are_met_with_a_hint(
    arguments: list[str], cure: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(cure)):
        read(*arguments)


@pytest.mark.parametrize("preset", [preset.preset for preset in PRESETS])
def test_a_flag_of_a_group_goes_by_its_last_part(preset: str) -> None:
    short = ["--learning-rate", "0.1", "--hidden_size=3", "--embedding-size=3"]
    full = ["--optimizer.learning-rate", "0.1", "--model.hidden-size=3", "--model.embedding-size=3"]
    assert read_arguments([preset, *short]) == read_arguments([preset, *full])


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
    ],
)
def test_a_close_spelling_names_the_flag(argument: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {re.escape(meant)}\\b"):
        read_arguments([argument])


@pytest.mark.parametrize("columns", [10, 20, 40, 200])
def test_flags_are_read_alike_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    command = read_arguments(["--hidden-size", "4", "--learning-rate", "0.1"])
    assert (command.config.model.hidden_size, command.config.optimizer.learning_rate) == (4, 0.1)
    assert read("--prompt", "--the").prompt == "--the"
    assert os.environ["COLUMNS"] == str(columns)


def test_other_commands_hint_too() -> None:
    with pytest.raises(ValueError, match="did you mean --batch-size; see classify --help"):
        parse(ClassifyCommand, None, ["run", "--batchsize", "3"], "classify")
    with pytest.raises(ValueError, match="did you mean --prefix"):
        parse(ConvertCommand, None, ["a.pt", "b.safetensors", "--prefx", "rnn."], "convert")


def test_a_preset_is_the_first_word_or_a_flag_and_never_passed_over() -> None:
    assert read_arguments(["--steps", "3", "--preset", "anna"]) == read_arguments(
        ["anna", "--steps", "3"]
    )
    for arguments in (["--steps", "3", "anna"], ["docs", "--preset", "anna"]):
        with pytest.raises(ValueError, match=r"comes first: train\.py anna"):
            read_arguments(arguments)


@pytest.mark.parametrize("preset", [[], *([preset.preset] for preset in PRESETS)])
def test_help_names_presets_and_flags_that_every_preset_has(
    preset: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        read_arguments([*preset, "--resume", "-h"])
    assert not exit.value.code
    assert capsys.readouterr().out == HELP.format(prog="train.py") + "\n"
    names = re.findall(r"^  (\w+) ", HELP, re.MULTILINE)
    assert names == [each.preset for each in PRESETS]
    flags = re.findall(r"^  (--[a-z-]+) [A-Z]+ ", HELP, re.MULTILINE)
    assert len(flags) == 8
    values = (("--layers", "2") if flag == "--layers" else (flag, "256") for flag in flags)
    read_arguments([*preset, *itertools.chain(*values)])


def test_all_flags_are_a_page_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, flags in (
        (["poems"], ["--checkpoint-every INT", "--sample-templates"]),
        (["--eval-only"], ["--sequence-length INT", "--model.hidden-size INT"]),
    ):
        with pytest.raises(SystemExit) as exit:
            read_arguments([*arguments, "--help-all"])
        assert not exit.value.code
        page = capsys.readouterr().out
        assert all(flag in page for flag in flags)
    with pytest.raises(SystemExit):
        sample_command(["--help-all"])
    page = capsys.readouterr().out
    flags = re.findall(r"^  (--[a-z-]+) ", SAMPLE_HELP, re.MULTILINE)
    assert len(flags) == 10
    assert all(f" {flag} " in page for flag in flags)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_error_is_the_message_alone_and_names_the_page_of_all_flags(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(ValueError, match=r"^Unrecognized options: --qqq, 3; see train.py --help-"):
        read_arguments(["--qqq", "3"])
    with pytest.raises(ValueError, match=r"^Error parsing --seed: .*'x'; see train.py --help-all$"):
        read_arguments(["--seed", "x"])

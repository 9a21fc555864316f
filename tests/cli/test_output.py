"""What is only shown: in any encoding, verbatim, and never what ends or changes a run."""

import io
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from commands import sample_command, train_command
from processes import ROOT
from run_cases import rows_of

from lstm_jax.cli import train as train_work
from lstm_jax.cli.console import json_line, run_command
from lstm_jax.cli.display import Display
from lstm_jax.systems.language import LanguageSystem
from lstm_jax.training import plots
from lstm_jax.training.recorders import TensorBoardRecorder

TEXT = "月亮下面的人在唱歌,風吹過山川.\n我想带你走到海的尽头 é😀.\n" * 40
SMALL = shlex.split(
    "--model.hidden-size 4 --batch-size 2 --sequence-length 8 --steps 6 --log-every 2 "
    "--checkpoint-every 3 --sample-every 3 --sample.length 4 --sample-prompts 月亮"
)


def shown(stream: Any) -> str:
    """What was written to a stream of bytes in memory."""
    stream.flush()
    return str(stream.buffer.getvalue(), stream.encoding)


def shown_in(
    encoding: str, command: Callable[[Sequence[str]], int], *arguments: object
) -> tuple[int, str]:
    """Calls a command whose standard output has this encoding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        code = run_command("command", command)
        return code, shown(sys.stdout)


def fail(*_: object) -> NoReturn:
    raise MemoryError("nothing is left")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    path = data.parent / "run"
    assert train_command(["--data", str(data), "--run-dir", str(path), *SMALL]) == 0
    return path


def test_a_run_that_nothing_can_be_shown_of_is_the_run_alone(run: Path, data: Path) -> None:
    samples = LanguageSystem.samples

    def some_fail(system: Any, params: Any, step: int) -> Iterator[tuple[str, str]]:
        return fail() if step == 3 else samples(system, params, step)

    path = data.parent / "unshown"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageSystem, "samples", some_fail)
        patch.setattr(TensorBoardRecorder, "row", fail)
        patch.setattr(plots, "draw_curves", fail)
        options = ("--data", data, "--run-dir", path, *SMALL, "--tensorboard")
        code, out = shown_in("cp1252", train_command, *options)
    assert code == 0
    for said in (
        "step 3: no samples (MemoryError: nothing is left)",
        "TensorBoardRecorder failed (nothing is left); training goes on without it",
        "no curves were drawn (nothing is left)",
        "--- sample at step 6 ---\n??",
    ):
        assert out.count(said) == 1
    assert rows_of(path) == rows_of(run)
    assert {each.name for each in (path / "checkpoints").iterdir()} == {"3", "6"}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_character_beyond_the_encoding_is_replaced_or_escaped(encoding: str, run: Path) -> None:
    options = (run, "--prompt", "月é😀", "--length", 3)
    whole = shown_in("utf-8", sample_command, *options)[1]
    code, out = shown_in(encoding, sample_command, *options)
    assert (code, out) == (0, whole.encode(encoding, "replace").decode(encoding))
    plain, escaped = (
        shown_in(each, sample_command, *options, "--jsonl")[1] for each in ("utf-8", encoding)
    )
    assert "月é😀" in plain
    assert json.loads(escaped) == json.loads(plain)


VERBATIM = ":smile: :heart: [b]bold[/b]\t[link=x] 1.5 \x0c\r" + "long " * 60


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_sample_is_shown_verbatim(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO(newline="")
    monkeypatch.setattr(out, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    with Display(0, 6) as display:
        display.sample(3, ":x:", VERBATIM)
        display.note(VERBATIM)
    assert f"--- sample at step 3 ---\n{VERBATIM}\n---\n" in out.getvalue()
    assert out.getvalue().count(VERBATIM) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_standard_output_that_fails_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with Display(0, 6) as display:
            for _ in range(3):
                display.note("lost")
    assert capsys.readouterr().err == (
        "standard output fails (No space left on device); nothing more is shown there\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("command", "words"), [(sample_command, "--length 3"), (train_command, "--eval-only --run-dir")]
)
@pytest.mark.parametrize("is_buffered", [True, False])
def test_texts_that_standard_output_does_not_take_are_one_line_and_an_error(
    command: Any, words: str, is_buffered: bool, run: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with open("/dev/full", "wb", buffering=-1 if is_buffered else 0) as raw:
        full = io.TextIOWrapper(raw, encoding="utf-8", write_through=not is_buffered)
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "argv", ["command", *words.split(), str(run)])
        assert run_command("command", command) == 2
    err = capsys.readouterr().err
    assert err.startswith("command: error: standard output fails (No space left on device)")
    assert err.count("\n") == 1


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_one_that_leads_nowhere(
    closed: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    for name, stream in (("stdin", sys.stdin), ("stdout", out), ("stderr", err)):
        monkeypatch.setattr(sys, name, None if name == closed else stream)
    for command, code, *options in (
        (sample_command, 0, run, "--length", "3", "--jsonl"),
        (train_command, 0, "--run-dir", run, "--resume"),
        (train_command, 2, "--nonsense"),
    ):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, options)])
        assert run_command("command", command) == code
    getattr(sys, closed).close()
    if closed != "stdout":
        assert "tokens/s" not in shown(out)
        assert "saved step 6" in shown(out)
    if closed != "stderr":
        assert "tokens/s" in shown(err)
        assert "nonsense" in shown(err)


def test_numbers_of_a_run_that_diverged_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 6, "loss": 4.0312, "perplexity": 56.331, "tokens_per_second": 12.0}
    with Display(0, 6) as display:
        display.row(row)
        display.row(row | {"loss": 139.77, "perplexity": math.exp(139.77)})
        display.row(row | {"loss": math.nan, "perplexity": math.inf})
    assert [line.split("  ")[1:3] for line in capsys.readouterr().out.splitlines()] == [
        ["loss 4.0312", "perplexity 56.3310"],
        ["loss 139.77", "perplexity 5.0274e+60"],
        ["loss nan", "perplexity inf"],
    ]


def test_json_is_strict_whatever_the_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"step": 6, "heldout_loss": 1e25, "heldout_perplexity": math.inf, "x": math.nan}
    monkeypatch.setattr(train_work, "evaluate_run", lambda *_: found)
    code, out = shown_in("utf-8", train_command, "--run-dir", run, "--eval-only")
    expected = {"step": 6, "heldout_loss": 1e25, "heldout_perplexity": None, "x": None}
    assert (code, json.loads(out, parse_constant=fail)) == (0, expected)
    assert json_line({"a": ({"b": math.nan},)}) == '{"a": [{"b": null}]}'


def test_an_absent_platform_is_named_in_one_line(run: Path, data: Path) -> None:
    """In a process of its own: JAX chooses its devices once."""
    script = f"""
import sys
from lstm_jax.cli.console import run_command
from lstm_jax.cli.main import sample_command, train_command
for command, *sys.argv in (
    (sample_command, "sample.py", {str(run)!r}),
    (train_command, "train.py", "--run-dir", {str(run)!r}, "--eval-only"),
    (train_command, "train.py", "--data", {str(data)!r}, "--run-dir", {str(run / "new")!r}),
):
    assert run_command(sys.argv[0], command) == 2
"""
    command, environment = [sys.executable, "-c", script], os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "error: JAX finds no device to compute on: JAX_PLATFORMS is 'cuda'" in line
    assert not (run / "new").exists()

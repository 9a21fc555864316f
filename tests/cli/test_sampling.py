"""Every way in which `sample.py` is asked to write or to judge, on a small model of songs."""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Refusal, sample_command, train_command
from processes import ROOT
from run_cases import snapshot

SONG = "".join(
    f"{n} grüne Flaschen an der Wand,\n{n} grüne Flaschen an der Wand.\n" for n in range(400)
)
PROMPT = "7 grüne"
Write = Callable[..., str]


@pytest.fixture(scope="module")
def song_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("song")
    (folder / "song.txt").write_text(SONG, encoding="utf-8")
    line = (
        f"--data {folder}/song.txt --run-dir {folder}/run --batch-size 8 --sequence-length 24 "
        "--steps 60 --log-every 20 --sample-every 0 --checkpoint-every 30 "
        "--hidden-size 24 --embedding-size 8 --learning-rate 0.02"
    )
    assert train_command(line.split()) == 0
    return folder / "run"


@pytest.fixture
def write(call: Command, song_run: Path) -> Write:
    """What `sample.py` prints, of 60 tokens after a prompt unless said otherwise."""

    def write(*arguments: object) -> str:
        code, out, _ = call(sample_command, song_run, "--length", 60, *arguments)
        assert code == 0
        return out

    return write


def scored(write: Write, file: Path, text: str, *options: object) -> dict[str, Any]:
    """What `--score` says of a text."""
    file.write_text(text, encoding="utf-8")
    found: dict[str, Any] = json.loads(write("--score", file, "--jsonl", *options))
    return found


def test_the_same_text_alone_is_printed(write: Write, call: Command, song_run: Path) -> None:
    options = ("--prompt", PROMPT, "--seed", 3)
    code, out, err = call(sample_command, song_run, *options, "--length", 60)
    assert (code, "tokens/s" in err, len(out)) == (0, True, len(PROMPT) + 60 + 1)
    assert out.startswith(PROMPT)
    assert write(*options) == out
    assert write(*options, "--seed", 4) != out
    assert write(*options, "--step", 60) == out
    assert write(*options, "--step", 30) != out
    greedy = write(*options, "--greedy")
    assert write(*options, "--temperature", 0) == greedy
    assert write(*options, "--top-n", 1) == greedy


def test_texts_of_a_batch_have_their_own_draws_and_stream_alike(write: Write) -> None:
    options = ("--prompt", PROMPT, "--seed", 3)
    one, many = write(*options), write(*options, "--batch", 2)
    assert many.startswith(one)
    assert len(many) == 2 * len(one)
    assert many != 2 * one
    assert write(*options, "--batch", 2, "--stream") == many
    lines = ("--line-length", 9)
    assert write(*options, *lines, "--stream") == write(*options, *lines)


def test_what_is_written_ends_before_a_stop_text(write: Write) -> None:
    options = ("--prompt", PROMPT, "--seed", 2)
    plain = write(*options)
    late, early = plain[50:54], plain[30:32]
    for stops in ([late], [late, early]):
        end = min(plain.index(stop, len(PROMPT)) for stop in stops)
        assert write(*options, "--stream", "--stop", *stops) == plain[:end] + "\n"
        row = json.loads(write(*options, "--jsonl", "--stop", *stops))
        assert (row["stopped"], row["text"]) == (True, plain[:end])


@pytest.mark.slow
def test_each_filter_has_a_flag(write: Write) -> None:
    options = ("--prompt", PROMPT, "--temperature", 3)
    plain, greedy = write(*options), write("--prompt", PROMPT, "--greedy")
    assert write(*options, "--top-p", 1e-6) == greedy
    assert write(*options, "--min-p", 1) == greedy
    assert write(*options, "--repetition-penalty", 1.5) != plain
    assert not set("aeü") & set(write(*options, "--forbid", "aeü")[len(PROMPT) :])
    halved = write("--prompt", PROMPT, "--greedy", "--weights", "bfloat16")
    assert halved[:20] == greedy[:20]


def test_what_is_never_written_is_noted(write: Write, call: Command, song_run: Path) -> None:
    options = ("--prompt", PROMPT, "--length", 60)
    odd = ("--stop", "END", "Ω", "--forbid", "Ωa")
    code, out, err = call(sample_command, song_run, *options, *odd)
    assert (code, out) == (0, write(*options, "--forbid", "a"))
    *notes, _ = err.splitlines()
    assert [note.partition("never")[0] for note in notes] == [
        "note: the model ",
        "note: the stop 'END' ends no text: the model ",
        "note: the stop 'Ω' ends no text: the model ",
    ]


def test_texts_are_taken_in_the_normal_form_that_the_model_learnt(
    write: Write, call: Command, song_run: Path, tmp_path: Path
) -> None:
    """Decomposed letters in every option that takes text; the song has composed ones."""
    decomposed = partial(unicodedata.normalize, "NFD")
    given = decomposed(PROMPT)
    assert given != PROMPT
    plain = write("--prompt", PROMPT)
    assert write("--prompt", given) == given + plain[len(PROMPT) :]
    row = json.loads(write("--prompt", given, "--jsonl"))
    assert (row["prompt"], row["text"] + "\n") == (given, given + plain[len(PROMPT) :])
    assert row["tokens"][: len(PROMPT)] == list(PROMPT)
    assert write("--template", decomposed("7 grü**")) == write("--template", "7 grü**")
    for option in ("--stop", "--forbid"):
        expected = write("--prompt", "7 gr", option, "ü")
        assert write("--prompt", "7 gr", option, decomposed("ü")) == expected
    code, _, err = call(sample_command, song_run, "--prompt", PROMPT, "--forbid", "aé")
    assert (code, "never writes 'é'" in err) == (0, True)
    scores = [scored(write, tmp_path / "text", text) for text in (given, PROMPT)]
    assert scores[0]["log_likelihood"] == scores[1]["log_likelihood"]


def test_json_lines_say_how_likely_each_text_is_and_scores_agree(
    write: Write, call: Command, song_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("7 grüne\n\n Wand\n1\n", encoding="utf-8")
    options = ("--prompts", tmp_path / "prompts", "--jsonl", "--forbid", "\n", "--batch", 2)
    rows = [json.loads(line) for line in write(*options).splitlines()]
    again = [json.loads(line) for line in write(*options, "--side-by-side", 1).splitlines()]
    assert [row["text"] for row in again] == [row["text"] for row in rows]
    assert [row["prompt"] for row in rows] == ["7 grüne"] * 2 + [" Wand"] * 2 + ["1"] * 2
    for row in rows:
        known, values = len(row["prompt"]), row["log_probabilities"]
        assert "".join(row["tokens"]) == row["text"]
        assert len(row["ids"]) == len(row["tokens"]) == len(values)
        assert values[:known] == [None] * known and max(values[known:]) <= 0
    rows = rows[-2:]  # of the prompt of one character
    file = tmp_path / "texts.txt"
    file.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    code, out, err = call(sample_command, song_run, "--score", file)
    assert code == 0
    total = 0.0
    for line, row in zip(out.splitlines(), rows, strict=True):
        likelihood, perplexity, tokens, text = line.split("\t")
        assert (text, tokens) == (row["text"], "60")
        nats = math.fsum(row["log_probabilities"][1:])
        assert float(likelihood) == pytest.approx(nats, abs=1e-3)
        assert float(perplexity) == pytest.approx(math.exp(-nats / 60), rel=1e-3)
        total += float(likelihood)
    assert float(err.split()[0]) == pytest.approx(-total / 120, abs=1e-4)
    text = rows[0]["text"]
    whole, start = (scored(write, file, each) for each in (text, text[:4]))
    rest = scored(write, file, text[4:], "--prompt", text[:4])
    assert whole["log_probabilities"][0] is None
    assert rest["log_probabilities"] == pytest.approx(whole["log_probabilities"][4:], abs=1e-5)
    both = start["log_likelihood"] + rest["log_likelihood"]
    assert both == pytest.approx(whole["log_likelihood"], abs=1e-3)


@pytest.mark.slow
def test_best_of_and_beams_are_likelier_than_a_draw(write: Write, tmp_path: Path) -> None:
    template = ("--template", "7 *****Fla******n", "--forbid", "\n", "--seed", 1)
    one, best = write(*template), write(*template, "--best-of", 32)
    beams = write(*template, "--beams", 8, "--batch", 8).splitlines()
    for text in (one.rstrip("\n"), best.rstrip("\n"), *beams):
        assert (text[:2], text[7:10], text[16]) == ("7 ", "Fla", "n")
    first, second, *others = (
        scored(write, tmp_path / "text", text)["log_likelihood"] for text in (one, best, *beams)
    )
    assert first <= second <= others[0] + 1e-3
    assert others == sorted(others, reverse=True)
    assert len(set(beams)) == 8


def test_templates_of_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "templates").write_text("7 ***\n*a*\n", encoding="utf-8")
    lines = write("--templates", tmp_path / "templates", "--forbid", "\n")
    assert re.fullmatch("7 ...\n.a.\n", lines)


BEYOND = (
    "length 99999999", "top_n -1", "temperature nan", "temperature -1", "batch 0", "seed -1",
    "step -1", "top_p 0", "min_p 2", "repetition_penalty 0", "best_of 0",
)  # fmt: skip
"""Values out of bounds."""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{tmp}/none", "not a run folder"),
        ("{run} --prompt ''", "prompt is empty"),
        ("{run} --prompt Ωmega", "U+03A9"),
        ("{run} --length 0", "length is 0; it must be at least 1"),
        ("{run} --step 7", "30, 60"),
        ("{run} --stop ''", "stop text is empty"),
        ("{run} --template Ω**", "template 'Ω'"),
        ("{run} --stream --jsonl", "stream and jsonl"),
        ("{run} --stream --beams 2", "stream and beams"),
        ("{run} --prompt a --prompts {tmp}/lines", "prompt and prompts"),
        ("{run} --beams 2 --batch 3", "raise beams"),
        ("{run} --prompts {tmp}/none", "does not exist"),
        ("{run} --prompts {tmp}/blank", "no line with text; give"),
        ("{run} --prompts {tmp}/lines", "line 3"),
        ("{run} --score {tmp}/lines", "line 3: text 'Ωmega'"),
        ("{run} --score {tmp}/short", "line 1 has a single token"),
        ("{tmp}/empty", "no checkpoint"),
        ("{tmp}/torn", "vocab.json"),
        ("{tmp}/torn-config", "config.json"),
        ("", "PATH"),
        *((f"{{run}} --{flag}", flag.replace(" ", " is ")) for flag in BEYOND),
    ],
)
def test_bad_sampling_is_one_line(
    arguments: str, said: str, refusal: Refusal, song_run: Path, tmp_path: Path
) -> None:
    for name in ("empty", "torn", "torn-config"):
        shutil.copytree(song_run, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "torn" / "vocab.json").write_text('{"format": 1, "tok')
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "lines").write_text("7 grüne\n\nΩmega\n", encoding="utf-8")
    (tmp_path / "short").write_text("n\n", encoding="utf-8")
    (tmp_path / "torn-config" / "config.json").write_text('{"format": 1, "conf')
    before = snapshot(tmp_path)
    words = shlex.split(arguments.format(tmp=tmp_path, run=song_run))
    assert said in refusal(sample_command, *words)
    assert snapshot(tmp_path) == before


def test_ctrl_c_ends_a_stream_cleanly_and_a_closed_pipe_is_no_error(song_run: Path) -> None:
    # A shell's background jobs ignore SIGINT, and what they start does too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, ROOT / "sample.py", song_run, "--prompt", PROMPT, "--stream"]
    pipe, endless = subprocess.PIPE, [*command, "--length", "10000000"]
    with subprocess.Popen(endless, stdout=pipe, stderr=pipe) as process:
        signal.signal(signal.SIGINT, before)
        assert process.stdout is not None
        shown = process.stdout.read(500)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert err.strip().endswith(b"interrupted")
    text = (shown + out).decode("utf-8")
    assert text.startswith(PROMPT) and text.endswith("\n")
    head = f"{shlex.join(map(str, command))} --length 2000 2> err | head -c 20; cat err"
    done = subprocess.check_output(["bash", "-c", head], cwd=song_run.parent, timeout=120)
    assert done.decode().startswith(PROMPT) and b"rror" not in done

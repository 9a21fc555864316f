"""Every way in which `sample.py` is asked to write or to judge, on a small model of songs."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from lstm_jax.cli.main import sample_command, train_command
from lstm_jax.cli.sample import file_lines

ROOT = Path(__file__).parents[2]
SONG = "".join(
    f"{n} grüne Flaschen an der Wand,\n{n} grüne Flaschen an der Wand.\n" for n in range(400)
)


@pytest.fixture(scope="module")
def song_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("data") / "song.txt"
    text.write_text(SONG, encoding="utf-8")
    run = tmp_path_factory.mktemp("runs") / "song"
    options = (
        "--batch-size 8 --sequence-length 24 --steps 60 --log-every 20 --sample-every 0 "
        "--model.hidden-size 24 --model.embedding-size 8 --optimizer.learning-rate 0.02"
    )
    assert (
        train_command(["docs", "--data", str(text), "--run-dir", str(run), *options.split()]) == 0
    )
    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("7 grüne\n\nWand\n1\n", encoding="utf-8")
    return path


def written(call: Command, *arguments: object) -> str:
    code, out, _ = call(sample_command, *arguments)
    assert code == 0
    return out


def test_a_stream_is_the_text_that_is_written_whole(call: Command, song_run: Path) -> None:
    options = (song_run, "--prompt", "7 grüne", "--length", 60, "--seed", 3, "--batch", 2)
    whole = written(call, *options)
    assert written(call, *options, "--stream") == whole
    lines = ("--line-length", 9)
    assert written(call, *options, *lines, "--stream") == written(call, *options, *lines)


@pytest.mark.slow
def test_many_prompts_are_written_as_each_alone_however_many_side_by_side(
    call: Command, song_run: Path, prompts: Path
) -> None:
    options = (song_run, "--prompts", prompts, "--length", 20, "--jsonl", "--batch", 2)
    rows = [json.loads(line) for line in written(call, *options).splitlines()]
    assert [row["prompt"] for row in rows] == ["7 grüne"] * 2 + ["Wand"] * 2 + ["1"] * 2
    for side_by_side in (1, 4):
        again = written(call, *options, "--side-by-side", side_by_side).splitlines()
        assert [json.loads(line)["text"] for line in again] == [row["text"] for row in rows]
    assert len({row["text"] for row in rows[:2]}) == 2
    for row in rows:
        assert "".join(row["tokens"]) == row["text"]
        assert len(row["ids"]) == len(row["tokens"]) == len(row["log_probabilities"])
        known = len(row["prompt"])
        assert row["log_probabilities"][:known] == [None] * known
        assert all(value <= 0 for value in row["log_probabilities"][known:])


def test_what_is_written_ends_before_a_stop_text(call: Command, song_run: Path) -> None:
    prompt = "7 grüne"
    options = (song_run, "--prompt", prompt, "--length", 120, "--seed", 2)
    plain = written(call, *options)
    late, early = plain[90:94], plain[60:62]
    for stops in ([late], [early], [late, early]):
        end = min(plain.index(stop, len(prompt)) for stop in stops)
        assert written(call, *options, "--stop", *stops) == plain[:end] + "\n"
        assert written(call, *options, "--stream", "--stop", *stops) == plain[:end] + "\n"
        row = json.loads(written(call, *options, "--jsonl", "--stop", *stops))
        assert (row["stopped"], row["text"]) == (True, plain[:end])


@pytest.mark.slow
def test_each_filter_has_a_flag(call: Command, song_run: Path) -> None:
    options = (song_run, "--prompt", "7 grüne", "--length", 80, "--temperature", 3)
    plain = written(call, *options)
    greedy = written(call, *options[:-2], "--greedy")
    assert written(call, *options, "--top-p", 1e-6) == greedy
    assert written(call, *options, "--min-p", 1) == greedy
    assert written(call, *options, "--repetition-penalty", 1.5) != plain
    assert not set("aeü") & set(written(call, *options, "--forbid", "aeü")[len("7 grüne") :])
    halved = written(call, *options[:-2], "--greedy", "--weights", "bfloat16")
    assert halved[:20] == greedy[:20]


def test_what_the_model_never_writes_ends_and_forbids_nothing(
    call: Command, song_run: Path
) -> None:
    options = (song_run, "--prompt", "7 grüne", "--length", 60)
    code, out, err = call(sample_command, *options, "--stop", "END", "Ω", "--forbid", "Ωa")
    assert code == 0
    assert out == written(call, *options, "--forbid", "a")
    *notes, _ = err.splitlines()
    assert [note.partition("never")[0] for note in notes] == [
        "note: the model ",
        "note: the stop 'END' ends no text: the model ",
        "note: the stop 'Ω' ends no text: the model ",
    ]


def test_texts_are_taken_in_the_normal_form_that_the_model_learnt(
    call: Command, song_run: Path, tmp_path: Path
) -> None:
    """Decomposed letters in every option that takes text; the song has composed ones."""

    def decomposed(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    prompt = "7 grüne"
    options = (song_run, "--length", 60, "--temperature", 2)
    plain = written(call, *options, "--prompt", prompt)
    given = decomposed(prompt)
    assert given != prompt
    assert written(call, *options, "--prompt", given) == given + plain[len(prompt) :]
    row = json.loads(written(call, *options, "--prompt", given, "--jsonl"))
    assert (row["prompt"], row["text"] + "\n") == (given, given + plain[len(prompt) :])
    assert row["tokens"][: len(prompt)] == list(prompt)
    template = written(call, song_run, "--template", "7 grü**")
    assert written(call, song_run, "--template", decomposed("7 grü**")) == template
    for option in ("--stop", "--forbid"):
        expected = written(call, *options, "--prompt", "7 gr", option, "ü")
        assert written(call, *options, "--prompt", "7 gr", option, decomposed("ü")) == expected
    code, _, err = call(sample_command, *options, "--prompt", prompt, "--forbid", "aé")
    assert (code, "never writes 'é'" in err) == (0, True)
    (tmp_path / "given").write_text(given, encoding="utf-8")
    (tmp_path / "text").write_text(prompt, encoding="utf-8")
    scores = [written(call, song_run, "--score", tmp_path / name) for name in ("given", "text")]
    assert scores[0].split("\t")[:3] == scores[1].split("\t")[:3]


def test_scores_agree_with_the_log_probabilities_of_what_is_written(
    call: Command, song_run: Path, tmp_path: Path
) -> None:
    options = (song_run, "--prompt", "7", "--length", 25, "--jsonl", "--forbid", "\n", "--batch", 3)
    rows = [json.loads(line) for line in written(call, *options).splitlines()]
    file = tmp_path / "texts.txt"
    file.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    code, out, err = call(sample_command, song_run, "--score", file)
    assert code == 0
    for line, row in zip(out.splitlines(), rows, strict=True):
        likelihood, perplexity, tokens, text = line.split("\t")
        assert (text, int(tokens)) == (row["text"], 25)
        nats = math.fsum(row["log_probabilities"][1:])
        assert float(likelihood) == pytest.approx(nats, abs=1e-3)
        assert float(perplexity) == pytest.approx(math.exp(-nats / 25), rel=1e-3)
    total = math.fsum(float(line.split("\t")[0]) for line in out.splitlines())
    assert float(err.split()[0]) == pytest.approx(-total / 75, abs=1e-4)
    described = [
        json.loads(line)
        for line in written(call, song_run, "--score", file, "--jsonl").splitlines()
    ]
    assert described[0]["log_probabilities"][0] is None
    assert math.fsum(described[0]["log_probabilities"][1:]) == pytest.approx(
        described[0]["log_likelihood"], abs=1e-4
    )


def test_a_text_is_scored_as_what_goes_on_from_a_prompt(
    call: Command, song_run: Path, tmp_path: Path
) -> None:
    texts = {"whole": "7 gr\xfcne Flaschen", "start": "7 gr\xfc", "rest": "ne Flaschen", "end": "n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def scored(name: str, *options: str) -> dict[str, Any]:
        row = written(call, song_run, "--score", tmp_path / name, "--jsonl", *options)
        found: dict[str, Any] = json.loads(row)
        return found

    whole, start, rest = scored("whole"), scored("start"), scored("rest", "--prompt", "7 gr\xfc")
    assert rest["tokens"] == list(texts["rest"])
    assert rest["log_probabilities"] == pytest.approx(whole["log_probabilities"][5:], abs=1e-5)
    likelihood = whole["log_likelihood"] - start["log_likelihood"]
    assert rest["log_likelihood"] == pytest.approx(likelihood, abs=1e-4)
    assert len(scored("end", "--prompt", "7")["log_probabilities"]) == 1


@pytest.mark.slow
def test_the_best_of_many_and_a_search_are_likelier_than_a_draw(
    call: Command, song_run: Path, tmp_path: Path
) -> None:
    template = (song_run, "--template", "7 *****Fla******n")

    def likelihood(text: str) -> float:
        (tmp_path / "text").write_text(text, encoding="utf-8")
        return float(written(call, song_run, "--score", tmp_path / "text").split("\t")[0])

    one = written(call, *template, "--seed", 1, "--forbid", "\n")
    best = written(call, *template, "--seed", 1, "--forbid", "\n", "--best-of", 32)
    beams = written(call, *template, "--forbid", "\n", "--beams", 8, "--batch", 8).splitlines()
    for text in (one.rstrip("\n"), best.rstrip("\n"), *beams):
        assert (text[:2], text[7:10], text[16]) == ("7 ", "Fla", "n")
    scores = [likelihood(text) for text in beams]
    assert likelihood(one) <= likelihood(best) <= scores[0] + 1e-3
    assert scores == sorted(scores, reverse=True)
    assert len(set(beams)) == 8


def test_templates_of_a_file(call: Command, song_run: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").write_text("7 ***\n*a*\n", encoding="utf-8")
    lines = written(call, song_run, "--templates", tmp_path / "templates", "--forbid", "\n")
    first, second = lines.splitlines()
    assert (first[:2], len(first)) == ("7 ", 5)
    assert (second[1], len(second)) == ("a", 3)


def test_lines_of_files_end_where_lf_and_crlf_are(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes("\ufeffa\rb\r\n\n \nc\x85d\u2028e\x0c\n".encode())
    assert file_lines(tmp_path / "lines") == [(1, "a\rb"), (4, "c\x85d\u2028e\x0c")]
    for content in (b"", b"\n \n"):
        (tmp_path / "lines").write_bytes(content)
        with pytest.raises(ValueError, match="no line with text; give"):
            file_lines(tmp_path / "lines")


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Processes started meanwhile hear SIGINT, though a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_ends_a_stream_cleanly_and_a_closed_pipe_is_no_error(song_run: Path) -> None:
    command = [sys.executable, ROOT / "sample.py", song_run, "--prompt", "7 grüne", "--stream"]
    with subprocess.Popen(
        [*map(str, command), "--length", "10000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        shown = b""
        deadline = time.monotonic() + 120
        while len(shown) < 500 and time.monotonic() < deadline:
            shown += process.stdout.read1(4096)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip().endswith("interrupted")
    assert "Traceback" not in err.decode()
    text = (shown + out).decode("utf-8")
    assert text.startswith("7 grüne")
    assert text.endswith("\n")
    head = f"{shlex.join(map(str, command))} --length 2000 2> err | head -c 20; cat err"
    done = subprocess.run(
        ["bash", "-c", head], capture_output=True, cwd=song_run.parent, check=True, timeout=120
    )
    assert done.stdout.decode().startswith("7 grüne")
    assert b"rror" not in done.stdout

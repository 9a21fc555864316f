"""The real commands, each in a folder of its own that is compared afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from broken import POEMS, PROSE, broken_bytes, broken_json, broken_text, json_bytes, rarely
from hypothesis import given
from hypothesis import strategies as st
from law import Surface, few, listing
from processes import Process
from test_archives import archives
from test_options import flags, names_of
from test_run_files import summed
from test_weights import safetensors_files

from lstm_jax.cli.options import ConvertCommand, SampleCommand
from lstm_jax.systems import preset_named

MEMORY, SECONDS, LONGEST_LINE = 12 << 30, 240.0, 1_200
SMALL = shlex.split(
    "--steps 2 --batch-size 2 --log-every 1 --evaluate-every 1 --checkpoint-every 1 "
    "--sample-every 2 --model.hidden-size 4 --heldout-share 0.3"
)
OF_TEXT = [*SMALL, "--sequence-length", "5", "--sample.length", "5"]
SYSTEMS = {"docs": ("text.txt", OF_TEXT), "poems": ("poems.txt", SMALL),
           "reviews": ("reviews.csv", SMALL)}  # fmt: skip
TRAIN, SAMPLE, CONVERT = "train.py", "sample.py", "lstm_jax"


class Case(NamedTuple):
    """A command, its words, and the file or folder of the working folder that it may write."""

    command: str
    words: list[str]
    writes: str | None = None


def run(case: Case, sandbox: Path) -> tuple[int, bytes, str]:
    """Runs a command in the folder `work`; gives its exit code and what it printed."""
    outside, nowhere = sandbox / "outside", "http://127.0.0.1:9"
    variables = {
        "HOME": str(outside / "home"),
        "TMPDIR": str(outside / "tmp"),
        "LSTM_JAX_CACHE": str(outside / "cache"),
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }
    process = Process(case.command, case.words, sandbox / "notes", place=sandbox / "work",
                      environment=variables, memory=MEMORY)  # fmt: skip
    return process.wait(SECONDS), process.output, process.errors


def make_files(place: Path) -> None:
    """What each case begins with."""
    place.mkdir(parents=True)
    rows = [f"good film {n},{n % 2}" for n in range(8)]
    words = ("good", "film", "0", "1", "2")
    contents = {
        "text.txt": PROSE * 3,
        "poems.txt": POEMS,
        "prompts.txt": "The quick\nfox\n",
        "templates.txt": "T*e q****\n*o*\n",
        "secret.txt": "nobody is to read or change this\n",
        "reviews.csv": "\n".join(["text,label", *rows]) + "\n",
        "vectors.txt": "".join(f"{word} 0.1 -0.{n}\n" for n, word in enumerate(words)),
    }
    for name, content in contents.items():
        (place / name).write_text(content, encoding="utf-8")
    with tarfile.open(place / "reviews.tar.gz", "w:gz") as archive:
        for number in range(6):
            label = ("neg", "pos")[number % 2]
            archive.add(place / "prompts.txt", f"aclImdb/train/{label}/{number}_1.txt")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and a run of a text and one of reviews."""
    sandbox = tmp_path_factory.mktemp("stage")
    make_files(sandbox / "work")
    reviews = ["--data", "reviews.csv", "--vectors", "vectors.txt", "--run-dir", "labels", *SMALL]
    for words in (
        ["--data", "text.txt", "--run-dir", "run", *OF_TEXT, "--sample-prompts", "fox"],
        ["reviews", *reviews],
    ):
        code, _, said = run(Case(TRAIN, words), sandbox)
        assert code == 0, said
    return sandbox / "work"


def assert_clean(surface: Surface, files: Path | None, make: Callable[[Path], Case]) -> None:
    """A command is refused by one line and exit code 2, or does what it is asked; no file besides.

    Args:
        surface: counts it.
        files: what the working folder begins with; by default what needs no run.
        make: spoils something in the working folder, and gives the command that meets it.
    """
    with tempfile.TemporaryDirectory(dir=surface.place) as folder:
        sandbox = Path(folder)
        if files is None:
            make_files(sandbox / "work")
        else:
            shutil.copytree(files, sandbox / "work", symlinks=True)
        case = make(sandbox / "work")
        for name in ("home", "tmp"):
            (sandbox / "outside" / name).mkdir(parents=True)
        before = listing(sandbox)
        code, output, said = run(case, sandbox)
        after = listing(sandbox)
    may = re.compile(
        r"notes\..*" + (f"|work/{re.escape(case.writes)}(/.*)?" if case.writes else "")
    )
    touched = {path for path, _ in before.items() ^ after.items() if not may.fullmatch(path)}
    assert touched == set(), case
    assert "Traceback" not in said, f"{case}\n{said[-3_000:]}"
    if code == 0:
        assert not case.writes or f"work/{case.writes}" in after, f"{case} wrote nothing"
        for line in output.decode().splitlines() if "--jsonl" in case.words else ():
            json.loads(line, parse_constant=pytest.fail)
    else:
        errors = [line for line in said.splitlines() if re.match(r"[\w. -]+: error: .", line)]
        assert (code, len(errors)) == (2, 1), f"{case}\n{said[-3_000:]}"
        assert said.endswith(f"{errors[0]}\n")
        assert len(errors[0]) <= LONGEST_LINE
    surface.count(refused=code != 0)


Draw = Callable[[st.SearchStrategy[Any]], Any]


def train_case(draw: Draw, place: Path) -> Case:
    """Odd options, data or paths for a new run, or a run that is no longer what it was."""
    name = draw(st.sampled_from(list(SYSTEMS)))
    data, small = SYSTEMS[name]
    words, run = [name, *small], "new"
    match draw(st.integers(0, 3)):
        case 0:
            words += _flags(draw, preset_named(name), "--steps", "--data")
        case 1:
            if name == "docs":
                words += draw(st.sampled_from(([], ["--tokens", "word"])))
            elif name == "reviews":
                data = draw(st.sampled_from((data, "reviews.tar.gz")))
                words += ["--vectors", "vectors.txt"]
            spoilt = draw(st.sampled_from((data, "vectors.txt"))) if name == "reviews" else data
            if spoilt.endswith("gz") and draw(st.booleans()):
                (place / spoilt).write_bytes(draw(archives()))
            else:
                _spoil(draw, place / spoilt)
        case 2:
            (place / "loop").symlink_to("loop")
            os.mkfifo(place / "pipe")
            odd = ("", ".", "/dev/zero", "/dev/null", "a\nb", "é\udc80", "x" * 300, "loop",
                   "text.txt/x", "nothing.txt", "secret.txt")  # fmt: skip
            if draw(st.booleans()):
                data = draw(st.sampled_from(odd))
            else:
                run = draw(st.sampled_from((*odd[:-2], "text.txt", "pipe")))
                words.append("--run-dir=" + run)
                return Case(TRAIN, [*words, "--data", data], run if run in odd[4:6] else "new")
        case _:
            run = _spoil_run(draw, place)
            if draw(rarely(st.just(False), st.just(True), 3)):
                return Case(TRAIN, ["--eval-only", "--run-dir", run])
            more = draw(st.sampled_from(([], ["--steps", "3"])))
            return Case(TRAIN, ["--resume", "--run-dir", run, *more], run)
    return Case(TRAIN, [*words, "--data", data, "--run-dir", run], run)


def sample_case(draw: Draw, place: Path) -> Case:
    """Odd options, files or texts, or a run that is no longer what it was."""
    run, more = "run", draw(st.sampled_from(([], ["--jsonl"])))
    match draw(st.integers(0, 3)):
        case 0:
            more += _flags(draw, SampleCommand, "--run-dir")
        case 1:
            run = _spoil_run(draw, place)
        case 2:
            files = (("--prompts", "prompts.txt"), ("--templates", "templates.txt"))
            flag, name = draw(st.sampled_from((*files, ("--score", "prompts.txt"))))
            _spoil(draw, place / name)
            more += [flag, name]
        case _:
            text = draw(broken_text("The quick*")).replace("\0", "")
            flag = draw(st.sampled_from(("--prompt", "--template", "--stop", "--forbid")))
            errors = draw(st.sampled_from(("replace", "surrogatepass")))
            more += [flag, os.fsdecode(text.encode(errors=errors))]
    return Case(SAMPLE, [run, "--length", "5", *more])


def convert_case(draw: Draw, place: Path) -> Case:
    """Odd options, a hostile file, or a run that is no longer what it was."""
    source, more = "run", []
    match draw(st.integers(0, 2)):
        case 0:
            more = _flags(draw, ConvertCommand, "--source", "--target")
        case 1:
            source = "weights.safetensors"
            (place / source).write_bytes(draw(safetensors_files()))
        case _:
            source = _spoil_run(draw, place)
    return Case(CONVERT, ["convert", source, "out.safetensors", *more], "out.safetensors")


def _flags(draw: Draw, owner: Any, *left_out: str) -> list[str]:
    """Hostile flags, but for those that may rightly take for ever, or write elsewhere."""
    found = draw(flags([flag for flag in names_of(owner) if flag not in left_out]))
    # The operating system takes neither.
    return [os.fsdecode(os.fsencode(word.replace("\0", ""))) for word in found]


def _spoil(draw: Draw, path: Path) -> None:
    if draw(rarely(st.just(True), st.just(False), 6)):
        path.write_bytes(draw(broken_bytes(path.read_bytes())))
    else:
        _replace(draw, path)


def _spoil_run(draw: Draw, place: Path) -> str:
    """Breaks something in one of the runs; gives its name."""
    name = draw(st.sampled_from(("run", "run", "run", "labels")))
    folder = place / name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    match draw(st.integers(0, 5)):
        case 0 | 1:  # other settings, under a checksum that is right
            found = json.loads((folder / "config.json").read_bytes())
            del found["crc32"]
            found["config"] = draw(broken_json(found["config"]))
            (folder / "config.json").write_text(json.dumps(summed(found)))
        case 2:
            path = folder / draw(st.sampled_from(("vocab.json", "metrics.jsonl", "config.json")))
            whole = path.read_text() if path.suffix == ".json" else path.read_text().split("\n")[0]
            path.write_bytes(draw(json_bytes(draw(broken_json(json.loads(whole))))))
        case 3:
            path = draw(st.sampled_from(files))
            path.write_bytes(draw(broken_bytes(path.read_bytes(), at_most=1)))
        case 4:
            _replace(draw, draw(st.sampled_from([path for path in files if path.name != ".lock"])))
        case _:
            (folder / ".lock").unlink(missing_ok=True)
            (folder / ".lock").symlink_to("../secret.txt")
    return name


def _replace(draw: Draw, path: Path) -> None:
    """Something else in a file's place, or nothing."""
    content = path.read_bytes()
    path.unlink()
    match draw(st.integers(0, 5)):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.write_bytes(b"")
        case 4:
            path.write_bytes(struct.pack("<Q", 2**62) + content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [train_case, sample_case, convert_case], ids=[TRAIN, SAMPLE, "interop convert"]
)
@few
@given(data=st.data())
def test_commands(
    surface: Surface, stage: Path, make: Callable[[Draw, Path], Case], data: st.DataObject
) -> None:
    assert_clean(surface, stage, lambda place: make(data.draw, place))


@pytest.mark.parametrize(
    "case",
    [
        Case(TRAIN, ["--data", "é\udc80", "--run-dir", "new", *OF_TEXT], "new"),
        Case(CONVERT, ["convert", "text.txt", "out.safetensors"], "out.safetensors"),
    ],
)
def test_a_command_is_refused_by_one_line(case: Case, tmp_path: Path) -> None:
    row: list[str | int] = ["", 0, 0, 0]
    assert_clean(Surface(tmp_path, row), None, lambda place: case)
    assert row[1:] == [1, 1, 0]

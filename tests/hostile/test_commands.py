"""The real commands, each in a folder of its own that is compared afterwards."""

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
from typing import Any

import pytest
from broken import broken_bytes, broken_tree, json_bytes, odd_flags
from hypothesis import given
from hypothesis import strategies as st
from law import Law, few
from processes import Process
from run_cases import snapshot
from surfaces import POEMS, PROSE, SURFACES, contents, summed
from test_surfaces import names_of

from lstm_jax.cli.options import ConvertCommand, SampleCommand
from lstm_jax.systems import preset_named

MEMORY, SECONDS, LONGEST_LINE = 12 << 30, 240.0, 1_200
TRAIN, SAMPLE, CONVERT = "train.py", "sample.py", "interop convert"
SMALL = (
    "--steps 2 --batch-size 2 --log-every 1 --evaluate-every 1 --checkpoint-every 1 "
    "--sample-every 2 --model.hidden-size 4 --heldout-share 0.3"
)
OF_TEXT = f"{SMALL} --sequence-length 5 --sample.length 5"
LINES: dict[str, list[tuple[str, Any]]] = {
    TRAIN: [
        (f"docs {OF_TEXT} --data text.txt --run-dir new", "docs"),
        (f"docs {OF_TEXT} --tokens word --data text.txt --run-dir new", "docs"),
        (f"poems {SMALL} --data poems.txt --run-dir new", "poems"),
        (f"reviews {SMALL} --data reviews.csv --vectors vectors.txt --run-dir new", "reviews"),
        (f"reviews {SMALL} --data reviews.tar.gz --vectors vectors.txt --run-dir new", "reviews"),
        ("--resume --run-dir run", "docs"),
        ("--resume --steps 3 --run-dir run", "docs"),
        ("--resume --run-dir labels", "reviews"),
        ("--eval-only --run-dir run", "docs"),
    ],
    SAMPLE: [
        (f"run --length 5 {more} {odd}", SampleCommand)
        for more in ("", "--prompts prompts.txt", "--templates templates.txt", "--jsonl",
                     "--score prompts.txt --jsonl", "--prompt quick --stop e --forbid f")
        for odd in ("", "--template T*e")
    ],
    CONVERT: [
        (f"convert {source} out.safetensors", ConvertCommand)
        for source in ("run", "labels", "weights.safetensors")
    ],
}  # fmt: skip
"""Lines of each command, and what has its flags."""


def run(command: str, words: list[str], sandbox: Path) -> tuple[int, bytes, str]:
    """Runs a command in the folder `work`; gives its exit code and what it printed."""
    places = {"HOME": "home", "TMPDIR": "tmp", "LSTM_JAX_CACHE": "cache"}
    variables = {name: str(sandbox / "outside" / place) for name, place in places.items()}
    variables |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    process = Process(
        "lstm_jax" if command == CONVERT else command, words, sandbox / "notes",
        place=sandbox / "work", environment=variables, memory=MEMORY,
    )  # fmt: skip
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
    surface = SURFACES["safetensors"]
    content = surface.pack(surface.trees()[0], lambda options: options[0])
    (place / surface.file).write_bytes(content)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and a run of a text and one of reviews."""
    sandbox = tmp_path_factory.mktemp("stage")
    make_files(sandbox / "work")
    reviews = f"reviews --data reviews.csv --vectors vectors.txt --run-dir labels {SMALL}"
    for line in (f"--data text.txt --run-dir run {OF_TEXT} --sample-prompts fox", reviews):
        code, _, said = run(TRAIN, line.split(), sandbox)
        assert code == 0, said
    return sandbox / "work"


def assert_clean(law: Law, files: Path, command: str, spoiled: Callable[[Path], list[str]]) -> None:
    """A command is refused by one line and exit code 2, or does what it is asked; no file besides.

    Args:
        law: counts it.
        files: what the working folder begins with.
        command: which one.
        spoiled: spoils something in the working folder, and gives the words that meet it.
    """
    with tempfile.TemporaryDirectory(dir=law.place) as folder:
        sandbox = Path(folder)
        shutil.copytree(files, sandbox / "work", symlinks=True)
        words = spoiled(sandbox / "work")
        writes = written_by(words, sandbox / "work")
        for name in ("home", "tmp"):
            (sandbox / "outside" / name).mkdir(parents=True)
        before = snapshot(sandbox)
        code, output, said = run(command, words, sandbox)
        after = snapshot(sandbox)
    may = r"notes\..*" + (f"|work/{re.escape(writes)}(/.*)?" if writes else "")
    changed = {path for path, _ in before.items() ^ after.items()}
    assert {path for path in changed if not re.fullmatch(may, path, re.DOTALL)} == set(), words
    assert "Traceback" not in said, f"{words}\n{said[-3_000:]}"
    if code == 0:
        assert not writes or f"work/{writes}" in after, f"{words} wrote nothing"
        for line in output.decode().splitlines() if "--jsonl" in words else ():
            json.loads(line, parse_constant=pytest.fail)
    else:
        errors = [line for line in said.splitlines() if re.match(r"[\w. -]+: error: .", line)]
        assert (code, len(errors)) == (2, 1), f"{words}\n{said[-3_000:]}"
        assert said.endswith(f"{errors[0]}\n")
        assert len(errors[0]) <= LONGEST_LINE
    law.count(refused=code != 0)


Draw = Callable[[st.SearchStrategy[Any]], Any]


def spoiled_words(draw: Draw, command: str, place: Path) -> list[str]:
    """A line with odd flags or another path, or of which a file is no longer what it was."""
    line, owner = draw(st.sampled_from(LINES[command]))
    words = shlex.split(line)
    named = [number for number, word in enumerate(words) if (place / word).exists()]
    match draw(st.integers(0, 3)):
        case 0:
            # Not those that may rightly take for ever, or write elsewhere.
            left_out = ("--steps", "--data", "--run-dir", "--source", "--target")
            flags = names_of(preset_named(owner) if isinstance(owner, str) else owner)
            words += draw(odd_flags([flag for flag in flags if flag not in left_out]))
        case 1:
            (place / "loop").symlink_to("loop")
            os.mkfifo(place / "pipe")
            odd = ("", ".", "/dev/zero", "/dev/null", "a\nb", "é\udc80", "x" * 300, "loop",
                   "text.txt/x", "nothing.txt", "secret.txt", "pipe")  # fmt: skip
            written = [words.index("new")] if "new" in words else []
            number = draw(st.sampled_from(named + written))
            # A pipe is waited for where it is read.
            path = draw(st.sampled_from(odd if number in written else odd[:-1]))
            if number and words[number - 1].startswith("--"):
                words[number - 1 : number + 1] = [f"{words[number - 1]}={path}"]
            else:
                words[number] = path
        case _:
            spoil(draw, place / words[draw(st.sampled_from(named))])
    # The operating system takes no others.
    return [os.fsdecode(os.fsencode(word.replace("\0", ""))) for word in words]


def written_by(words: list[str], place: Path) -> str | None:
    """What a line may write: the run that it resumes, or what is not there yet."""
    if words[0] == "convert":
        return "out.safetensors"
    joined = [word for each in words for word in each.split("=", 1)]
    if "--run-dir" not in joined or "--eval-only" in words:
        return None
    name = joined[joined.index("--run-dir") + 1]
    is_there = os.path.lexists(place / name)  # of a name that is too long it says no
    return name if name and ("--resume" in words or not is_there) else None


def spoil(draw: Draw, path: Path) -> None:
    """Breaks a file, or one in a folder, puts something else in its place, or nothing."""
    if path.is_dir():
        files = [each for each in path.rglob("*") if each.is_file()]
        path = draw(st.sampled_from(sorted(files, key=lambda each: (len(each.parts), each))))
    content = path.read_bytes()
    if path.suffix == ".json" and draw(st.integers(0, 3)):
        tree = json.loads(content)
        if tree.pop("crc32", None) and draw(st.booleans()):  # other settings, rightly summed
            tree = summed(tree | {"config": draw(broken_tree(tree["config"]))})
        else:
            tree = draw(broken_tree(tree))
        path.write_bytes(json_bytes(tree))
        return
    archives, weights = (SURFACES[name] for name in ("review archives", "safetensors"))
    match draw(st.integers(0, 8)):
        case 0 | 1 if path.name in (archives.file, weights.file):
            path.write_bytes(draw(contents(archives if "tar" in path.name else weights)))
        case 0 | 1 | 2 | 3:
            path.write_bytes(draw(broken_bytes(content)))
        case 4:
            path.write_bytes(struct.pack("<Q", 2**62) + content)
        case odd:
            path.unlink()
            if odd == 5:
                path.mkdir()
            elif odd < 8:
                targets = ("/dev/zero", path.name, "/".join([".."] * 9) + "/secret.txt")
                path.symlink_to(draw(st.sampled_from(targets)))


@pytest.mark.slow
@pytest.mark.beyond_ci
@pytest.mark.parametrize("name", LINES)
@few
@given(data=st.data())
def test_commands(law: Law, stage: Path, name: str, data: st.DataObject) -> None:
    assert_clean(law, stage, name, lambda place: spoiled_words(data.draw, name, place))


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (TRAIN, f"--data é\udc80 --run-dir new {OF_TEXT}"),
        (CONVERT, "convert text.txt out.safetensors"),
    ],
)
def test_a_command_is_refused_by_one_line(command: str, line: str, tmp_path: Path) -> None:
    make_files(tmp_path / "files")
    law = Law(tmp_path, ["", 0, 0, 0])
    assert_clean(law, tmp_path / "files", command, lambda place: line.split())
    assert law.row[1:] == [1, 1, 0]

"""Cases of the real commands: each in a folder of its own that is compared afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bench.fuzz.archives import hostile_archive
from bench.fuzz.mutations import broken_bytes, broken_json, broken_text, json_bytes
from bench.fuzz.options import flags_of, hostile_flags
from bench.fuzz.report import Tally
from bench.fuzz.stage import SMALL, TEXT_FLAGS, copy_stage, make_stage, run, script
from bench.fuzz.trial import Outcome, random_of
from bench.fuzz.weights import hostile_safetensors
from lstm_jax.cli.convert import ConvertCommand
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.systems.language import DOCS
from lstm_jax.systems.poems import POEMS
from lstm_jax.systems.reviews import REVIEWS

_LONGEST_LINE = 1_200


class Case(NamedTuple):
    """A command, and what it may write.

    Attributes:
        words: the command line.
        writes: the file or folder, in the working folder, that it may make or change.
    """

    words: list[str]
    writes: str | None


Kind = Callable[[Random, Path], Case]
"""Spoils something in a folder, and gives the command that meets it."""


def run_commands(numbers: Iterable[int], seed: int, jobs: int) -> list[Tally]:
    """Cases of the commands, and what came of each command's."""
    with tempfile.TemporaryDirectory(prefix="fuzz-stage-") as folder:
        stage = Path(folder) / "work"
        make_stage(stage)
        numbers = list(numbers)
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(lambda number: run_one(number, seed, stage), numbers))
    tallies = {name: Tally(name) for name in dict.fromkeys(_command_of(n) for n in range(_ROUND))}
    for number, outcome in zip(numbers, outcomes, strict=True):
        tallies[_command_of(number)].count(f"command-{number}", outcome)
    return list(tallies.values())


def run_one(number: int, seed: int, stage: Path) -> Outcome:
    """One case: its command, and what it did to a folder and its neighbours."""
    rng = random_of(seed, f"command-{number}")
    sandbox = Path(tempfile.mkdtemp(prefix="fuzz-command-"))
    try:
        place, outside = sandbox / "work", sandbox / "outside"
        copy_stage(stage, place)
        case = _KINDS[number % _ROUND](rng, place)
        for name in ("home", "tmp"):
            (outside / name).mkdir(parents=True)
        before = listing(sandbox)
        try:
            result = run(case.words, place, outside)
        except subprocess.TimeoutExpired as late:
            return Outcome(
                "finding", f"{_shown(case)}\nit had not ended after {late.timeout:.0f} s"
            )
        touched = changed(before, listing(sandbox), f"work/{case.writes}" if case.writes else None)
        problems = _problems(case, result, place) + ([f"it touched {touched}"] if touched else [])
        said = result.stderr.decode(errors="replace")[-2_500:]
        if problems:
            return Outcome("finding", f"{_shown(case)}\n{'; '.join(problems)}\n{said}")
        return Outcome("refused" if result.returncode else "accepted", f"{_shown(case)}\n{said}")
    finally:
        shutil.rmtree(sandbox, ignore_errors=True)


def listing(folder: Path) -> dict[str, str]:
    """What each path below a folder is: its kind, and what it holds or points to."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                held = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                held = os.readlink(path) if stat.S_ISLNK(mode) else ""
            found[str(path.relative_to(folder))] = f"{stat.S_IFMT(mode)} {held}"
    return found


def changed(before: dict[str, str], after: dict[str, str], allowed: str | None) -> list[str]:
    """The paths that differ, but for those allowed and below."""
    return [
        path
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
        and not (allowed and (path == allowed or path.startswith(f"{allowed}/")))
    ]


def _problems(case: Case, result: subprocess.CompletedProcess[bytes], place: Path) -> list[str]:
    said = result.stderr.decode(errors="replace")
    problems = ["a traceback"] if "Traceback" in said else []
    if result.returncode == 0:
        if case.writes and "--eval-only" not in case.words and not (place / case.writes).exists():
            problems.append("it wrote nothing")
        if "--jsonl" in case.words:
            problems += _wrong_json(result.stdout)
        return problems
    if result.returncode != 2:
        problems.append(f"exit code {result.returncode}")
    errors = [line for line in said.splitlines() if re.match(r"[\w. -]+: error: .", line)]
    if len(errors) != 1 or not said.endswith(f"{errors[-1]}\n"):
        problems.append(f"{len(errors)} lines of error in {len(said.splitlines())}")
    elif len(errors[0]) > _LONGEST_LINE:
        problems.append(f"an error of {len(errors[0])} characters")
    return problems


def _wrong_json(output: bytes) -> list[str]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        for line in output.decode().splitlines():
            json.loads(line, parse_constant=refuse)
    except ValueError as error:
        return [f"no strict JSON: {error}"]
    return []


def _shown(case: Case) -> str:
    return " ".join(
        repr(word) if len(word) < 200 else f"{word[:50]!r}..." for word in case.words[1:]
    )


# Kinds of case


def _flags(rng: Random, owner: Any, *left_out: str) -> list[str]:
    """Hostile flags, but for those that may rightly take for ever, or write elsewhere."""
    flags = [flag for flag in flags_of(owner) if flag not in left_out]
    # The operating system takes neither.
    found = [word.replace("\0", "") for word in hostile_flags(rng, flags)]
    return [os.fsdecode(os.fsencode(word)) for word in found]


def _train_options(rng: Random, place: Path) -> Case:
    preset, data, small = rng.choice(
        (
            (DOCS, "text.txt", TEXT_FLAGS),
            (POEMS, "poems.txt", SMALL),
            (REVIEWS, "reviews.csv", SMALL),
        )
    )
    words = [preset.preset, "--data", data, "--run-dir", "new", *small]
    return Case([*script("train.py"), *words, *_flags(rng, preset, "--steps", "--data")], "new")


def _train_text(rng: Random, place: Path) -> Case:
    _spoil_bytes(rng, place / "text.txt")
    words = ["--data", "text.txt", "--run-dir", "new", *TEXT_FLAGS]
    if rng.random() < 0.5:
        words += ["--tokens", "word"]
    return Case([*script("train.py"), *words], "new")


def _train_poems(rng: Random, place: Path) -> Case:
    _spoil_bytes(rng, place / "poems.txt")
    return Case(
        [*script("train.py"), "poems", "--data", "poems.txt", "--run-dir", "new", *SMALL], "new"
    )


def _train_reviews(rng: Random, place: Path) -> Case:
    name = rng.choice(("reviews.csv", "reviews.tar.gz", "vectors.txt"))
    if name.endswith("gz") and rng.random() < 0.5:
        (place / name).write_bytes(hostile_archive(rng))
    else:
        _spoil_bytes(rng, place / name)
    data = "reviews.csv" if name == "vectors.txt" else name
    words = ["reviews", "--data", data, "--run-dir", "new", *SMALL, "--vectors", "vectors.txt"]
    return Case([*script("train.py"), *words], "new")


def _train_path(rng: Random, place: Path) -> Case:
    """Odd paths for the run and its data."""
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "pipe")
    odd = ("", ".", "/dev/zero", "/dev/null", "a\nb", "é\udc80", "x" * 300, "loop", "text.txt/x")
    if rng.random() < 0.5:
        name = rng.choice((*odd, "nothing.txt", "secret.txt"))
        return Case([*script("train.py"), "--data", name, "--run-dir", "new", *TEXT_FLAGS], "new")
    name = rng.choice((*odd, "text.txt", "pipe"))
    words = ["--data", "text.txt", "--run-dir", name, *TEXT_FLAGS]
    return Case([*script("train.py"), *words], name if name in ("a\nb", "é\udc80") else "new")


def _resume(rng: Random, place: Path) -> Case:
    name = _spoil_run(rng, place)
    words = ["--resume", "--run-dir", name, *rng.choice(([], ["--steps", "3"]))]
    return Case([*script("train.py"), *words], name)


def _evaluate(rng: Random, place: Path) -> Case:
    name = _spoil_run(rng, place)
    return Case([*script("train.py"), "--eval-only", "--run-dir", name], None)


def _sample_options(rng: Random, place: Path) -> Case:
    flags = _flags(rng, SampleCommand, "--run-dir")
    return Case([*script("sample.py"), "run", "--length", "5", *flags], None)


def _sample_run(rng: Random, place: Path) -> Case:
    name = _spoil_run(rng, place)
    return Case([*script("sample.py"), name, "--length", "5", "--jsonl"], None)


def _sample_files(rng: Random, place: Path) -> Case:
    flag, name = rng.choice((("--prompts", "prompts.txt"), ("--templates", "templates.txt"),
                             ("--score", "prompts.txt")))  # fmt: skip
    _spoil_bytes(rng, place / name)
    words = ["run", "--length", "5", flag, name, *rng.choice(([], ["--jsonl"]))]
    return Case([*script("sample.py"), *words], None)


def _sample_texts(rng: Random, place: Path) -> Case:
    text = broken_text(rng, "The quick*").replace("\0", "")
    text = text.encode("utf-8", errors="replace").decode() if rng.random() < 0.5 else text
    flag = rng.choice(("--prompt", "--template", "--stop", "--forbid"))
    words = ["run", "--length", "5", flag, os.fsdecode(text.encode(errors="surrogatepass"))]
    return Case([*script("sample.py"), *words], None)


def _convert_file(rng: Random, place: Path) -> Case:
    (place / "weights.safetensors").write_bytes(hostile_safetensors(rng))
    words = ["convert", "weights.safetensors", "out.safetensors"]
    return Case([*script("lstm_jax.interop"), *words], "out.safetensors")


def _convert_run(rng: Random, place: Path) -> Case:
    words = ["convert", _spoil_run(rng, place), "out.safetensors"]
    return Case([*script("lstm_jax.interop"), *words], "out.safetensors")


def _convert_options(rng: Random, place: Path) -> Case:
    flags = _flags(rng, ConvertCommand, "--source", "--target")
    words = ["convert", "run", "out.safetensors", *flags]
    return Case([*script("lstm_jax.interop"), *words], "out.safetensors")


_NAMED: dict[str, tuple[Kind, ...]] = {
    "sample.py": (_sample_options, _sample_run, _sample_files, _sample_texts, _sample_options),
    "lstm_jax.interop convert": (_convert_file, _convert_run, _convert_options, _convert_file),
    "train.py": (
        _train_options,
        _train_text,
        _train_poems,
        _train_reviews,
        _train_path,
        _resume,
        _evaluate,
        _train_options,
        _resume,
    ),
}
_KINDS: tuple[Kind, ...] = tuple(kind for kinds in _NAMED.values() for kind in kinds)
_ROUND = len(_KINDS)


def _command_of(number: int) -> str:
    names = [name for name, kinds in _NAMED.items() for _ in kinds]
    return names[number % _ROUND]


def _spoil_bytes(rng: Random, path: Path) -> None:
    if rng.random() < 0.85:
        path.write_bytes(broken_bytes(rng, path.read_bytes()))
    else:
        _replace(rng, path)


def _spoil_run(rng: Random, place: Path) -> str:
    """Breaks something in one of the runs; gives its name."""
    name = rng.choice(("run", "run", "run", "labels"))
    folder = place / name
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    match rng.randrange(6):
        case 0 | 1:
            _change_config(rng, folder / "config.json")
        case 2:
            path = folder / rng.choice(("vocab.json", "metrics.jsonl", "config.json"))
            path.write_bytes(json_bytes(rng, broken_json(rng, _lenient(path))))
        case 3:
            path = rng.choice(files)
            path.write_bytes(broken_bytes(rng, path.read_bytes(), at_most=1))
        case 4:
            _replace(rng, rng.choice([path for path in files if path.name != ".lock"]))
        case _:
            lock = folder / ".lock"
            lock.unlink(missing_ok=True)
            lock.symlink_to("../secret.txt")
    return name


def _change_config(rng: Random, path: Path) -> None:
    """Other settings, under a checksum that is right."""
    described = json.loads(path.read_bytes())
    described["config"] = broken_json(rng, described["config"])
    described.pop("crc32", None)
    described["crc32"] = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    path.write_text(json.dumps(described))


def _lenient(path: Path) -> Any:
    lines = path.read_text().splitlines()
    return json.loads(lines[0] if path.suffix == ".jsonl" else "\n".join(lines))


def _replace(rng: Random, path: Path) -> None:
    """Something else in a file's place."""
    content = path.read_bytes()
    path.unlink()
    match rng.randrange(6):
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
        case _:
            pass

"""What each case of the commands begins with: valid files and two runs, made once."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.fuzz.texts import POEMS, PROSE

ROOT = Path(__file__).parents[2]
SMALL = shlex.split(
    "--steps 2 --batch-size 2 --log-every 1 --evaluate-every 1 --checkpoint-every 1 "
    "--sample-every 2 --model.hidden-size 4 --heldout-share 0.3"
)
TEXT_FLAGS = [*SMALL, "--sequence-length", "5", "--sample.length", "5"]

_MEMORY_KIB = 12 << 20
_SECONDS = 240.0


def make_stage(place: Path, *, with_runs: bool = True) -> None:
    """Writes the files, and trains a run of a text and one of reviews."""
    place.mkdir(parents=True)
    (place / "text.txt").write_text(PROSE * 3, encoding="utf-8")
    (place / "poems.txt").write_text(POEMS, encoding="utf-8")
    (place / "prompts.txt").write_text("The quick\nfox\n", encoding="utf-8")
    (place / "templates.txt").write_text("T*e q****\n*o*\n", encoding="utf-8")
    (place / "secret.txt").write_text("nobody is to read or change this\n", encoding="utf-8")
    rows = [f"good film {n},{n % 2}" for n in range(8)]
    (place / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    words = ("good", "film", "0", "1", "2")
    lines = [f"{word} 0.1 -0.{number}" for number, word in enumerate(words)]
    (place / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _make_archive(place)
    if with_runs:
        _train(place)


def _train(place: Path) -> None:
    for arguments in (
        ["--data", "text.txt", "--run-dir", "run", *TEXT_FLAGS, "--sample-prompts", "fox"],
        ["reviews", "--data", "reviews.csv", "--vectors", "vectors.txt", "--run-dir", "labels",
         *SMALL],
    ):  # fmt: skip
        result = run([*script("train.py"), *arguments], place, place.parent / "outside")
        if result.returncode:
            raise RuntimeError(f"the stage cannot be set: {result.stderr.decode()}")


def script(name: str) -> list[str]:
    """The beginning of a command line."""
    if name.endswith(".py"):
        return [sys.executable, str(ROOT / name)]
    return [sys.executable, "-m", name]


def run(
    command: list[str], place: Path, outside: Path, *, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in a folder, with bounded memory, and everything else it might write nearby.

    Args:
        command: its words.
        place: the working folder.
        outside: in which home, temporary files and caches are.
        seconds: how long it may take.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    for name in ("home", "tmp"):
        (outside / name).mkdir(parents=True, exist_ok=True)
    fonts = Path(tempfile.gettempdir(), "fuzz-matplotlib")  # listing them takes seconds
    fonts.mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(outside / "home"),
        "TMPDIR": str(outside / "tmp"),
        "LSTM_JAX_CACHE": str(outside / "cache"),
        "MPLCONFIGDIR": str(fonts),
        "JAX_PLATFORMS": "cpu",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "LANG": "C.UTF-8",
    }
    limited = ["sh", "-c", 'ulimit -v "$0" && exec "$@"', str(_MEMORY_KIB), *command]
    return subprocess.run(
        limited,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )


def copy_stage(stage: Path, place: Path) -> None:
    """A copy that a case may spoil."""
    shutil.copytree(stage, place, symlinks=True)


def _make_archive(place: Path) -> None:
    with tarfile.open(place / "reviews.tar.gz", "w:gz") as archive:
        for number in range(6):
            name = f"aclImdb/train/{('neg', 'pos')[number % 2]}/{number}_1.txt"
            source = place / "review.txt"
            source.write_text(f"good film {number}", encoding="utf-8")
            archive.add(source, name)
        source.unlink()

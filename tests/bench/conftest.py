"""`python -m bench` runs in the repository's root; so do its tests find it.

Where a test does not say otherwise, what would run in processes of their own runs in this one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# `--import-mode=importlib` puts no folder on the path.
sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from other_work import LocalWorker

from bench import contest, growth, limits, memory, peers, timing
from bench.__main__ import main
from bench.report import Row, read_rows
from bench.workers import Worker


@pytest.fixture(autouse=True)
def short_and_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is not how long it takes."""
    monkeypatch.setattr("bench.workers.gc.collect", lambda: 0)
    monkeypatch.setattr(timing, "SECONDS_PER_VISIT", 0.02)
    monkeypatch.setattr(limits, "SPECS", ("mk,kn->mn",))
    usual = peers.candidates
    for module in (contest, memory, growth):
        monkeypatch.setattr(module, "Worker", LocalWorker)
    for module in (contest, memory):
        monkeypatch.setattr(module, "candidates", lambda *given: usual(*given)[:1])


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, short_and_local: None) -> None:
    """In processes of their own, in all the ways that there are."""
    for module in (contest, memory):
        monkeypatch.setattr(module, "Worker", Worker)
        monkeypatch.setattr(module, "candidates", peers.candidates)


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., list[Row]]:
    """Runs a bench's command, which writes rows and draws them."""

    def run(bench: str, flags: str, code: int = 0, draws: bool = True) -> list[Row]:
        file, picture = tmp_path / "rows.jsonl", tmp_path / "rows.png"
        plot = ["--plot", str(picture)] if draws else []
        assert main([bench, *flags.split(), "--json", str(file), *plot]) == code
        assert not draws or picture.read_bytes().startswith(b"\x89PNG")
        return read_rows(file)

    return run


@pytest.fixture
def rows_compiled(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """What a bench writes, in a process whose compiler is not set for tests."""

    def run(bench: str, flags: str, **variables: str) -> list[dict[str, Any]]:
        file = tmp_path / "rows.jsonl"
        usual = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        command = [sys.executable, "-m", "bench", bench, "--json", str(file), *flags.split()]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=usual | variables)
        return list(map(json.loads, file.read_text().splitlines()))

    return run


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does other work than ours, and one whose library is not installed."""
    monkeypatch.setitem(peers.PEERS, "wrong", "other_work")
    monkeypatch.setitem(peers.PEERS, "absent", "a_library_that_nobody_wrote")
    monkeypatch.setattr("bench.sample.Options.known", (*peers.SAMPLING_PEERS, "wrong", "absent"))

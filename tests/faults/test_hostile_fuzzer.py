"""bench.fuzz, in short: the program stands it, and the fuzzer would notice if it didn't."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from bench.fuzz import texts, trial
from bench.fuzz.commands import changed, listing, run_commands, run_one
from bench.fuzz.in_process import run_case, run_cases, surfaces
from bench.fuzz.report import Tally, table
from bench.fuzz.stage import make_stage
from bench.fuzz.trial import Outcome, limited_memory, require, try_case

SEED = 7


@pytest.mark.parametrize("cases", [1_000, pytest.param(2_500, marks=pytest.mark.slow)])
def test_nothing_but_clean_refusals_and_kept_promises(cases: int) -> None:
    tallies = run_cases(range(cases), SEED)
    assert [tally.findings for tally in tallies] == [[]] * len(surfaces())
    assert all(tally.verdicts["refused"] + tally.verdicts["accepted"] for tally in tallies)
    # It would be of little use if all were refused at once.
    assert sum(tally.verdicts["accepted"] for tally in tallies) > cases / 10


def test_a_case_is_the_same_whenever_it_is_run() -> None:
    def said(outcome: Outcome) -> tuple[str, str]:
        return outcome.verdict, outcome.detail.split("/tmp")[0]

    assert [said(run_case(n, SEED)) for n in range(60)] == [
        said(run_case(n, SEED)) for n in range(60)
    ]
    assert trial.random_of(1, 2).random() != trial.random_of(2, 1).random()


class Planted:
    """A surface with a defect."""

    name, share = "planted", 1

    def __init__(self, run: Callable[[Random, Path], None]) -> None:
        self.run = run


def _fails(rng: Random, place: Path) -> None:
    raise KeyError("format")


def _speaks_of_codecs(rng: Random, place: Path) -> None:
    "\ud800".encode()


def _says_nothing(rng: Random, place: Path) -> None:
    raise ValueError


def _hangs(rng: Random, place: Path) -> None:
    time.sleep(60)


def _catches_all(rng: Random, place: Path) -> None:
    try:
        time.sleep(60)
    except Exception:
        return


def _breaks_a_promise(rng: Random, place: Path) -> None:
    require(False, "a word was lost")


def _runs_out(rng: Random, place: Path) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "defect",
    [_fails, _speaks_of_codecs, _says_nothing, _hangs, _catches_all, _breaks_a_promise, _runs_out],
)
def test_a_defect_is_a_finding(
    defect: Callable[[Random, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.2)
    assert try_case(Planted(defect), SEED, 0, tmp_path).verdict == "finding"


def test_much_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = iter([100.0, 500.0])
    monkeypatch.setattr(trial, "_largest_mebibytes", lambda: next(sizes))
    found = try_case(Planted(lambda rng, place: None), SEED, 0, tmp_path)
    assert (found.verdict, found.detail[:21]) == ("finding", "it took 400 MiB of me")


def test_memory_has_a_limit() -> None:
    with limited_memory(256), pytest.raises(MemoryError):
        bytes(1 << 32)
    assert len(bytes(1 << 29)) == 1 << 29


def test_a_defect_of_the_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path, *, as_is: bool = False) -> str:
        return path.read_bytes().decode()

    monkeypatch.setattr(texts, "read_text", careless)
    numbers = range(14)  # the first turns are those of text files
    assert any(tally.findings for tally in run_cases(numbers, SEED))


def test_what_a_command_touches_is_noticed(tmp_path: Path) -> None:
    for name in ("run/a", "run2/b", "c", "d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("c")
    before = listing(tmp_path)
    (tmp_path / "run/a").write_text("changed")
    (tmp_path / "run/new").write_text("new")
    (tmp_path / "run2/b").write_text("changed")
    (tmp_path / "c").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "folder").mkdir()
    assert changed(before, listing(tmp_path), "run") == ["c", "folder", "link", "run2/b"]
    assert changed(before, before, None) == []


def test_the_table_adds_up() -> None:
    first, second = Tally("texts"), Tally("archives")
    first.count("0", Outcome("refused"))
    first.count("1", Outcome("accepted"))
    second.count("2", Outcome("finding", "a traceback"))
    assert table([first, second]).splitlines()[2:] == [
        "| texts | 2 | 1 | 1 | 0 |",
        "| archives | 1 | 0 | 0 | 1 |",
        "| all | 3 | 1 | 1 | 1 |",
    ]
    assert second.as_json()["findings"] == [{"case": "2", "detail": "a traceback"}]


def test_a_few_commands(tmp_path: Path) -> None:
    """Those that need no run: files to convert, a command line of `train.py`."""
    stage = tmp_path / "stage"
    make_stage(stage, with_runs=False)
    found = [run_one(number, SEED, stage) for number in (5, 8)]
    assert [each.verdict for each in found if each.verdict == "finding"] == []


@pytest.mark.slow
def test_a_round_of_commands() -> None:
    for tally in run_commands(range(18), SEED, jobs=1):
        assert tally.findings == []
        assert tally.verdicts.total() > 0

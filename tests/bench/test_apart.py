"""The benches of memory, compilation and growth, on tiny systems."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import apart, compile, growth, memory, shapes
from bench.ahead import lower
from bench.apart import Apart, NotRun, run_apart
from bench.environment import environment
from bench.shapes import Classification, System

TINY = System("tiny", 11, "lstm", 1, 8, batch_size=3, sequence_length=5)
REVIEWS = Classification("tiny-reviews", 60, 1, 8, 6, 5, 7, 4)


def found(first_s: float, peak_mb: float) -> Apart:
    return Apart(first_s, (0.01, 0.03, 0.02), peak_mb, {"a": "b"})


@pytest.mark.slow
def test_a_large_table_shows_in_the_memory_of_its_process() -> None:
    """Its weights, a copy to train, and Adam's two means."""
    large = dataclasses.replace(TINY, vocabulary_size=4_000, hidden_size=500)
    table_mb = 4 * 4_000 * (4 * 500) / 1e6
    run = run_apart(large, "float32", "lstm_jax", 2)
    assert 3 * table_mb < run.peak_mb < 20 * table_mb
    assert len(run.step_s) == 1
    assert run.first_s > run.step_s[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch", "flax-nnx", "keras", "equinox"])
def test_every_peer_runs_apart(name: str) -> None:
    library = {"pytorch": "torch", "flax-nnx": "flax"}.get(name, name)
    if not find_spec(library):
        pytest.skip(f"{library} is not installed")
    assert run_apart(TINY, "float32", name, 3).peak_mb > 0


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(NotRun, match="there is no peer 'numpy'"):
        run_apart(REVIEWS, "float32", "numpy", 2)


def test_memory_rows_hold_peaks_and_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(system: Any, dtype: str, name: str, steps: int) -> Apart:
        assert (dtype, steps) == ("float32", 6)
        if name == "keras":
            raise NotRun("keras is not installed")
        return found(1.0, {"lstm_jax": 10.0, "pytorch": 25.0, "flax-nnx": 40.0}[name])

    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setattr(memory, "run_apart", run)
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "peaks.png")]
    assert memory.main(["--peers", "pytorch", "flax-nnx", "keras", *files]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["memory_mb"] for row in rows] == [10.0, 25.0, 40.0]
    assert [row["ratio_to_best_peer"] for row in rows] == [2.5, None, None]
    assert [row["median_ms"] for row in rows] == [pytest.approx(20.0)] * 3
    assert rows[0]["peers_left_out"] == {"keras": "keras is not installed"}
    assert "keras is left out: keras is not installed" in capsys.readouterr().out
    assert (tmp_path / "peaks.png").read_bytes().startswith(b"\x89PNG")


def test_compile_rows_hold_first_steps_and_each_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"lstm_jax": iter([2.0, 4.0]), "flax-nnx": iter([6.0, 8.0])}
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setattr(compile, "run_apart", lambda *asked: found(next(first[asked[2]]), 1.0))
    file = tmp_path / "rows.json"
    options = ["--peers", "flax-nnx", "--rounds", "2", "--times", "10", "--json", str(file)]
    assert compile.main(options) == 0
    ours, peer, longer = json.loads(file.read_text())
    assert ours["median_ms"] == pytest.approx(3e3)
    assert ours["compile_s"] == pytest.approx(2.99)
    assert peer["median_ms"] == pytest.approx(7e3)
    assert ours["ratio_to_best_peer"] == pytest.approx(7 / 3)
    assert longer["system"] == "tiny, 10 times"
    assert longer["shape"]["sequence_length"] == 10
    assert longer["compile_s"] == pytest.approx(longer["median_ms"] / 1e3)


def test_the_program_is_as_long_for_20_000_times_as_for_10() -> None:
    def operations(times: int) -> list[str]:
        text = lower(dataclasses.replace(TINY, sequence_length=times), "float32").as_text()
        return re.findall(r"= \"?([\w.]+)", text)

    assert operations(20_000) == operations(10)
    assert len(operations(10)) > 100


def test_growth_rows_name_what_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = growth.measure_point("batch_size", 6, growth.Options(rounds=1), environment(), base=TINY)
    assert row.system == "batch size 6"
    assert row.tokens_per_second == pytest.approx(30e3 / row.median_ms)
    assert row.compile_s > 0
    assert row.memory_mb is not None
    assert row.memory_mb > 0
    monkeypatch.setattr(
        growth,
        "measure_point",
        lambda size, value, *_: dataclasses.replace(
            row,
            system=f"{size} {value}",
            shape=dataclasses.asdict(TINY) | {size: value, "varied": size},
        ),
    )
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "growth.png")]
    assert growth.main(["--quick", *files]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["shape"]["varied"] for row in rows[::2]] == list(growth.SIZES)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_every_size_grows_as_far_as_is_promised() -> None:
    assert {size: max(values) for size, values in growth.SIZES.items()} == {
        "sequence_length": 20_000,
        "batch_size": 1_024,
        "hidden_size": 2_048,
        "vocabulary_size": 100_000,
        "remat": 20_000,
    }
    assert growth.Options(quick=True).values("hidden_size") == growth.SIZES["hidden_size"][:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: memory.Options(steps=1), "steps is 1"),
        (lambda: compile.Options(rounds=0), "rounds is 0"),
        (lambda: compile.Options(times=(0,)), "times are"),
        (lambda: growth.Options(rounds=0), "rounds is 0"),
        (lambda: memory.main(["--peers", "numpy"]), "there is no peer 'numpy'"),
    ],
)
def test_options_that_make_no_sense_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options()


def test_a_platform_without_proc_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_STATUS", Path("/nowhere/status"))
    with pytest.raises(ValueError, match="a process's memory is only read on Linux"):
        memory.Options()

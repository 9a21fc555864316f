"""The benches of memory, compilation, growth and scaling, on tiny systems."""

import dataclasses
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from other_work import TINY

from bench import growth, memory, scaling, shapes
from bench.memory import Steps, steps_of
from bench.ours import step_shapes
from bench.report import Row
from bench.workers import Failed, NotRun
from lstm_jax.cli.flags import available_cores

SMALL = dataclasses.replace(TINY, layers=1, dropout=0.0)


@pytest.mark.slow
@pytest.mark.beyond_ci
def test_a_large_table_shows_in_the_memory_of_its_process(apart: None) -> None:
    """Its weights, a copy to train, and Adam's two means."""
    large = dataclasses.replace(SMALL, vocabulary_size=4_000, hidden_size=500)
    table_mb = 4 * 4_000 * (4 * 500) / 1e6
    run = steps_of("lstm_jax", large, "float32", 2)
    assert 3 * table_mb < run.peak_mb < 20 * table_mb
    assert len(run.step_s) == 1
    assert run.first_s > run.step_s[0] > 0


def test_rows_hold_the_medians_of_all_processes_and_their_ratio(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {"lstm_jax": [10.0, 90.0, 10.0], "pytorch": [25.0] * 3, "flax-nnx": [40.0] * 3}
    order = []

    def run(name: str, system: Any, dtype: str, steps: int) -> Steps:
        assert (dtype, steps) == ("float32", 6)
        order.append(name)
        if name in ("keras", "equinox"):
            raise (NotRun if name == "keras" else Failed)(f"{name} is not well")
        first_s = 2.0 if name == "lstm_jax" else 3.0
        return Steps(first_s, [0.01, 0.03, 0.02], peaks[name].pop(), {"a": "b"})

    monkeypatch.setattr(shapes, "SYSTEMS", (SMALL,))
    monkeypatch.setattr(memory, "steps_of", run)
    rows = rows_of("memory", "", code=1)  # one has failed
    assert order[:5] == ["lstm_jax", "pytorch", "flax-nnx", "keras", "equinox"]
    assert order[5:8] == ["lstm_jax", "pytorch", "flax-nnx"]
    assert [row.memory_mb for row in rows] == [10.0, 25.0, 40.0]
    assert [row.ratio_to_best_peer for row in rows] == [2.5, None, None]
    assert [row.median_ms for row in rows] == [pytest.approx(20.0)] * 3
    assert [row.compile_s for row in rows] == [pytest.approx(1.99), *[pytest.approx(2.99)] * 2]
    assert rows[0].peers_left_out["keras"] == "cannot run: keras is not well"
    printed = capsys.readouterr().out
    assert "keras is left out: cannot run: keras is not well" in printed
    assert "our first step takes 2.00 s, that of the fastest peer 3.00 s" in printed


def test_the_program_is_as_long_for_20_000_times_as_for_10() -> None:
    def operations(times: int) -> list[str]:
        system = dataclasses.replace(SMALL, sequence_length=times)
        lower, *given = step_shapes(system, "float32")
        return re.findall(r"= \"?([\w.]+)", lower(*given).as_text())

    assert operations(20_000) == operations(10)
    assert len(operations(10)) > 100


@pytest.mark.slow
def test_growth_rows_name_what_varies(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "BASE", SMALL)
    row = growth.measure_point("batch_size", 6, growth.Options(rounds=1))
    assert row.system == "batch size 6"
    assert row.tokens_per_second == pytest.approx(30e3 / row.median_ms)
    assert row.compile_s > 0
    assert (row.memory_mb or 0) > 0

    def measured(size: str, value: int, *_: object) -> Row:
        shape = dataclasses.asdict(SMALL) | {size: value, "varied": size}
        return dataclasses.replace(row, system=f"{size} {value}", shape=shape)

    monkeypatch.setattr(growth, "measure_point", measured)
    rows = rows_of("growth", "--quick")
    assert [row.shape["varied"] for row in rows[::2]] == list(growth.SIZES)
    assert [row.shape["hidden_size"] for row in rows[4:6]] == [32, 128]
    assert "remat 100: 1.000 of the memory, 1.00 of the time of remat" in capsys.readouterr().out


def test_resident_memory_is_that_of_this_process() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert memory.status_mb("VmRSS") == pytest.approx(pages * resource.getpagesize() / 1e6, rel=0.1)


def test_a_platform_without_proc_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    with pytest.raises(ValueError, match="a process's memory is only read on Linux"):
        memory.Options()


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="each of two processes takes a core")
def test_processes_train_alone_and_together(
    rows_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    alone, together = rows_of("scaling", "--rounds 3 --steps 2", draws=False)
    assert (alone.implementation, together.implementation) == (scaling.ALONE, scaling.TOGETHER)
    assert alone.tokens_per_second * alone.median_ms == pytest.approx(
        2e3 * TINY.tokens_per_step  # of both
    )
    efficiency = together.details["efficiency"]
    assert 0 < efficiency["p10"] <= efficiency["median"] <= efficiency["p90"]
    assert f"reach {efficiency['median']:.3f} of their speed" in capsys.readouterr().out

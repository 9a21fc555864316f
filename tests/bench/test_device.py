"""All of it on a GPU in one go: limits that are kept, rows that stay, who is left out."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import other_parts
import pytest
from other_work import INSTALLED, LocalWorker, way_of

from bench import ours, peers
from bench.__main__ import main
from bench.device import PARTS, Part, recording, run_all
from bench.device_cases import REPEATS, Case, Way, errors, layer_cases
from bench.device_race import race_all
from bench.device_table import rows_in
from bench.peers import LayerPass
from bench.workers import Built, Disagreement, Late


@pytest.mark.slow
def test_a_part_that_hangs_or_dies_takes_no_other_s_time_and_no_row_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"bench": "device", "told": "cut o')
    parts = [
        Part("hangs", 1, other_parts.hangs),
        Part("dies", 4, other_parts.dies),
        Part("ends", 5, other_parts.ends),
    ]
    run_all(parts, 1.5, file, small=True)
    hung, stopped, died, why, ended = rows_in(file)
    parts_of_rows = [row["part"] for row in (hung, stopped, died, why, ended)]
    assert parts_of_rows == ["hangs", "hangs", "dies", "dies", "ends"]
    assert stopped["failed"].startswith("was stopped at its limit")
    assert why["failed"].startswith("died with -6")
    assert ended["small"]
    assert 30 < ended["limit_s"] < 90 - 9
    told = capsys.readouterr().out
    assert "hangs: at most 9 s\nhangs: was stopped at its limit" in told
    assert "dies: died with -6" in told
    assert "ends: ended after" in told
    stat = Path("/proc", str(hung["child"]), "stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def evident(peer: Any, way: Way) -> Built:
    def evidence(reference: str) -> dict[str, str]:
        if way_of(peer) == "other work":
            raise Disagreement(f"it is no {reference}")
        return {"is": reference}

    return Built({"pass": lambda times=1: None, "forward": lambda times=1: None}, {}, evidence)


class OneIsLate(LocalWorker):
    """One asked for in this environment does not answer."""

    asked = 0

    def __init__(self, environment: Mapping[str, str], limit_s: float | None = None) -> None:
        super().__init__(environment)
        self._is_late = "LATE" in environment

    def answer(self, method: Any, *given: Any) -> Any:
        if self._is_late:
            OneIsLate.asked += 1
            return Late("no answer")
        return super().answer(method, *given)


def test_who_is_wrong_fails_or_is_late_has_a_row_and_no_time_and_what_is_done_is_left(
    tmp_path: Path, strangers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.contest.Worker", OneIsLate)
    monkeypatch.setattr("bench.device_race.SPEND_S", 1e-3)
    ways = (
        Way("lstm_jax", "lstm_jax"),
        Way("wrong", "wrong"),
        Way("absent", "absent"),
        Way("late", "lstm_jax", environment={"LATE": "1"}),
    )
    cases = [
        Case("layers", system, "tf32", ways, evident, lambda: "truth", tokens=7, flops=5)
        for system in ("first", "second")
    ]
    broken = Case("layers", "third", "tf32", ways[:1], evident, partial(int, "no"), tokens=1)
    file = tmp_path / "rows.jsonl"
    with recording(file, "layers") as record:
        race_all([*cases, broken], set(), record)
    rows = rows_in(file)
    assert OneIsLate.asked == 1
    reasons = {row["implementation"]: row["failed"] for row in rows[:-1] if "failed" in row}
    assert reasons == {
        "wrong": "does other work: it is no truth",
        "absent": "cannot run: a_library_that_nobody_wrote is not installed",
        "late": "failed: no answer",
    }
    assert not any("median_ms" in row for row in rows if "failed" in row)
    timed = [row for row in rows if "failed" not in row]
    assert [(row["system"], row["call"], row["flops"]) for row in timed] == [
        (system, *call) for system in ("first", "second") for call in (("pass", 5), ("forward", 0))
    ]
    assert all(row["shown"] == {"is": "truth"} and row["median_ms"] >= 0 for row in timed)
    assert rows[-1]["system"] == "third"
    assert "invalid literal" in rows[-1]["failed"]
    names = ("part", "system", "implementation", "dtype")
    again: list[Any] = []
    race_all(cases, {tuple(row[n] for n in names) for row in rows}, again.append)
    assert again == []


def test_wrong_unwritten_or_changing_numbers_of_a_layer_are_found() -> None:
    ones, alone = np.ones((3, 2), np.float32), "ys of the forward pass alone"
    exact, peer = {"ys": ones, alone: ones}, ours.Peer()

    def shown(peer: Any, *passes: np.ndarray[Any, Any]) -> Any:
        turns = iter([*passes, *[passes[-1]] * REPEATS])
        calls = (lambda: None, lambda: None, lambda: {"ys": next(turns)}, lambda: forward)
        return errors(peer, LayerPass(*calls, {}), "float32", exact)

    forward, right = ones, 1.0001 * ones
    assert shown(peer, right)["same_bits"]
    assert shown(peer, right)["away"]["ys"] == pytest.approx(1e-4, rel=0.01)
    unwritten = np.where(np.arange(6).reshape(3, 2) == 4, np.nan, right)
    for passes, told in (
        ((1.01 * right,), "0.01 of its length"),
        ((unwritten,), "nan of its length"),
        ((right.T,), r"\(2, 3\), that in float64 \(3, 2\)"),
        ((right, right, ones), "passes differ in their bits"),
    ):
        with pytest.raises(Disagreement, match=told):
            shown(peer, *passes)
    assert not shown(peers.Implementation(), right, ones)["same_bits"]
    forward = 1.01 * ones
    with pytest.raises(Disagreement, match="forward pass alone is"):
        shown(peer, right)


def test_cases_name_each_way_once_and_every_shape_of_the_bars() -> None:
    cases = layer_cases(small=False)
    for case in cases:
        assert len(case.keys()) == len(case.ways)
    assert {case.dtype for case in cases} == {"float32", "tf32", "bfloat16"}
    first = [case.system for case in cases[:4]]
    assert first[0] == "lstm 100,100,512,512 x 2"
    assert cases[0].flops == 2 * 6 * 2 * 100 * 100 * 512 * 2048


def row(system: str, implementation: str, ms: float, **fields: Any) -> dict[str, Any]:
    usual = {"bench": "device", "part": "layers", "dtype": "tf32", "call": "pass", "flops": 2e9}
    timing = {"median_ms": ms, "p10_ms": ms, "p90_ms": ms, "tokens_per_second": 1e3 / ms}
    about = {"device": "gpu (H)", "date": "2026-01-01", "versions": {"jax": "1"}}
    return {**usual, **timing, **about, "system": system, "implementation": implementation} | fields


def test_the_table_is_made_of_the_rows_with_the_best_of_each_and_the_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = "lstm 100,100,512,512"
    rows = [
        {**row("product", "", 1), "unit": "TFLOP/s", "rate": 10.0},
        row("lstm 35,32,256,256", "lstm_jax scan", 2.0),
        row("lstm 35,32,256,256", "lstm_jax one graph", 1.0),
        row("lstm 35,32,256,256", "pytorch", 1.4),
        row("lstm 35,32,256,256", "flax-nnx", 5.0),
        row("lstm 35,32,256,256", "pytorch float16", 0.5, dtype="float16"),
        row(alone, "lstm_jax", 1.0),
        row(f"{alone} flags", "lstm_jax", 1.2),
        row("anna", "lstm_jax", 1.0, call="step", part="train"),
        row("anna", "pytorch graph", 1.5, call="step", part="train"),
    ]
    del rows[0]["call"]
    failed = {k: v for k, v in row(alone, "keras", 1).items() if k not in ("call", "median_ms")}
    lines = [*map(json.dumps, [*rows, {**failed, "failed": "cannot run: away"}]), '{"bench": "dev']
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    assert main(["device", "--table", str(file)]) == 0
    told = capsys.readouterr().out
    for text, message in (
        ('{"bench": "device", "call": "pass"}', "has rows that this bench did not write: KeyError"),
        ("torn\n[]", "has no rows of this bench"),
        (None, "has no rows of this bench"),
    ):
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(ValueError, match=f"rows.jsonl {message}"):
            main(["device", "--table", str(file)])
    for part in (
        "gpu (H) , 2026-01-01: jax 1",
        "product tf32: 10 TFLOP/s",
        "pass lstm 35,32,256,256 tf32: lstm_jax one graph 1 ms [1, 1] 1,000/s; pytorch 1.4 ms",
        "20.0% of the card's products; pytorch / ours 1.40, bar 1.5: not met; "
        "flax-nnx / ours 5.00, bar 5.0: met",
        "1.20 of it without masks and resets, bar 1.1: not met",
        "pytorch graph / ours 1.50, bar 1.5: met",
        f"no time: keras cannot run: away ({alone} tf32)",
    ):
        assert part in told, part


@pytest.mark.slow
def test_all_of_it_runs_in_small_without_a_gpu(
    rows_compiled: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    rows = rows_compiled("device", "--dry-run", **quick)
    told = capfd.readouterr().out
    assert {row["part"] for row in rows} == {part.name for part in PARTS}
    for part in PARTS:
        assert f"{part.name}: ended after" in told
    for row in rows:
        assert row.get("failed", "cannot run: ").startswith("cannot run: "), row
    measured = {(row["part"], row["implementation"]) for row in rows if "call" in row}
    found = {"one graph", "unroll 10", "in turn", "at once"}
    names = {f"lstm_jax {each}" for each in found} | {"lstm_jax", "flax-nnx", "jax-rnn"}
    names |= set(INSTALLED) - {"equinox"}
    assert {("layers", name) for name in names} <= measured
    assert {("train", "lstm_jax"), ("sample", "lstm_jax one graph")} <= measured
    assert "pass lstm 6,4,8,8 flags bfloat16: lstm_jax" in told
    assert " passed" in told
    assert '"step": 3' in told

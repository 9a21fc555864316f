"""Who takes part beside ours, who is left out and why, and what becomes of the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_work import GRU, INSTALLED, TINY, build, way_of

from bench import contest, layer, peers, shapes, train
from bench.agreement import (
    GREEDY,
    Learning,
    require_same_continuations,
    require_same_gradients,
    require_same_learning,
)
from bench.peers import Candidate
from bench.report import Row, read_rows
from bench.workers import Disagreement

WAYS = {
    "other": ["other work"],
    "unlucky": ["unlucky"],
    "away": ["away"],
    "many": ["slow", "away", "fast"],
}


def require_other_work_to_be_named(found: str, ours: str) -> None:
    assert ours == "ours"
    if found == "other work":
        raise Disagreement("it is another")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> contest.Work:
    def candidates(name: str, *_: object) -> list[Candidate]:
        ways = WAYS.get(name, [])
        return [Candidate(way if ways[1:] else "", {"way": way}) for way in ways] or [peers.ONLY]

    monkeypatch.setattr(contest, "candidates", candidates)
    for name in WAYS:
        monkeypatch.setitem(peers.PEERS, name, "other_work")
    check = contest.Check(way_of, (), require_other_work_to_be_named)
    return contest.Work("train", "training", GRU, 15, {}, build, check)


def competed(work: contest.Work, *names: str) -> tuple[list[Row], bool]:
    with contest.Pool() as pool:
        return contest.compete(pool, work, train.Options(rounds=2, peers=names))


def test_who_does_other_work_or_fails_is_left_out_and_of_several_ways_the_fastest_counts(
    work: contest.Work, strangers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, agrees = competed(work, "other", "unlucky", "away", "absent", "many")
    assert not agrees
    ours, peer = rows
    reasons = {
        "other": "does other work: it is another",
        "unlucky": "failed: RuntimeError: out of luck",
        "away": "cannot run: not here",
        "absent": "cannot run: a_library_that_nobody_wrote is not installed",
    }
    assert ours.peers_left_out == peer.peers_left_out == reasons
    printed = capsys.readouterr().out
    assert all(f"tiny-gru: {name} is left out: {why}" in printed for name, why in reasons.items())
    assert (ours.implementation, peer.implementation) == ("lstm_jax", "many")
    assert peer.settings["way"] == peer.settings["candidate"] == "fast"
    assert "away cannot run: not here; slow 2" in peer.settings["tried"]
    assert ours.ratio_to_best_peer == pytest.approx(peer.median_ms / ours.median_ms)
    assert peer.ratio_to_best_peer is peer.limit_fraction is None
    for row in rows:
        assert row.tokens_per_second == pytest.approx(15e3 / row.median_ms)
        assert row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.calls > 2


def test_one_that_cannot_run_is_no_disagreement_and_ours_is_never_left_out(
    work: contest.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, agrees = competed(work, "away")
    assert agrees
    assert [row.ratio_to_best_peer for row in rows] == [None]
    monkeypatch.setitem(WAYS, "lstm_jax", ["unlucky"])
    monkeypatch.setattr(contest, "module_of", lambda name: "other_work")
    with pytest.raises(ValueError, match="out of luck"):
        competed(work)


def test_each_shows_once_that_it_does_the_same_work(work: contest.Work) -> None:
    with contest.Pool() as pool:
        shown: list[str] = []
        check = work.check._replace(require_same=lambda found, ours: shown.append(found))
        held = contest.Contest(pool, "training", "tiny", check)
        for _ in range(3):
            entered = held.enter(("lstm_jax", "other", "away"), build)
            assert [each.name for each in entered] == ["lstm_jax", "other"]
    assert shown == ["other work"]
    assert held.left_out.all_agree


def test_the_command_writes_rows_and_a_picture(
    tmp_path: Path,
    strangers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real one; the others have the same course, with other work."""
    monkeypatch.setattr(shapes, "SYSTEMS", (GRU,))
    file, picture = tmp_path / "rows.jsonl", tmp_path / "bars.png"
    files = ["--json", str(file), "--plot", str(picture)]
    named = ["--systems", "tiny-gru", "--peers", "absent", "wrong"]
    assert train.main([*named, "--quick", *files]) == 1
    printed = capsys.readouterr().out
    assert "wrong is left out: does other work: the first loss" in printed
    assert "the products alone: " in printed
    (row,) = read_rows(file)
    assert (row.bench, row.system, row.implementation) == ("train", "tiny-gru", "lstm_jax")
    assert row.ratio_to_best_peer is None
    assert (row.limit_fraction or 0) > 0
    assert "5 x [3, 8] @ [8, 24]" in row.settings["limit"]
    assert {"jax", "python"} < set(row.versions)
    assert int(row.threads["cores"]) >= 1
    assert row.date.count("-") == 2
    assert set(row.peers_left_out) == {"absent", "wrong"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    # One line each, without what it has not.
    (line,) = map(json.loads, file.read_text().splitlines())
    assert not {"memory_mb", "steps_per_second", "ratio_to_best_peer"} & set(line)


@pytest.mark.slow
@pytest.mark.beyond_ci
def test_peers_in_processes_of_their_own_are_timed(apart: None) -> None:
    with contest.Pool() as pool:
        options = train.Options(quick=True)
        rows, agrees = contest.compete(pool, train.work_of(TINY, "float32"), options)
    assert agrees
    assert [row.implementation for row in rows] == ["lstm_jax", *INSTALLED]
    for row in rows:
        # Of PyTorch's ways to run the fastest is named, beside the times of all.
        if row.implementation == "pytorch":
            assert f"{row.settings['candidate']} " in row.settings["tried"]
            assert "oneDNN off" in row.settings["tried"]


@pytest.mark.slow
def test_of_the_shapes_of_a_layer_the_least_is_measured_if_quick(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    given = ["--shapes", "90,3,5,8", "7,3,5,8", "--cells", "gru", "--quick", "--json", str(file)]
    assert layer.main([*given, "--peers", "flax-nnx"]) == 0
    ours, peer = read_rows(file)
    assert ours.system == peer.system == "gru 7,3,5,8"
    assert ours.tokens_per_second == pytest.approx(21e3 / ours.median_ms)


def test_pytorch_has_threads_to_choose_on_a_cpu_alone() -> None:
    def names(cores: int, kind: peers.Kind = "training") -> list[str]:
        return [each.name for each in peers.candidates("pytorch", kind, cores)]

    assert names(0) == ["eager", "torch.compile"]
    assert names(0, "sampling") == ["eager"]
    assert names(4)[0] == "threads 4, oneDNN on"
    assert len(names(4)) == 5
    assert len(names(1)) == 3


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Learning(11, 2.0, 0.1), "trains 11 parameters, ours 10"),
        (Learning(10, 2.001, 0.1), "the first loss"),
        (Learning(10, math.nan, 0.1), "the first loss is nan"),
        (Learning(10, 2.0, 0.0), "the drop of the loss"),
    ],
)
def test_what_is_learnt_otherwise_is_named(found: Learning, message: str) -> None:
    with pytest.raises(Disagreement, match=message):
        require_same_learning(found, Learning(10, 2.0, 0.1), "float32")


def test_another_gradient_is_named() -> None:
    wanted = {"w_x": np.ones((2, 3))}
    require_same_gradients({}, wanted, "float32")
    with pytest.raises(Disagreement, match=r"gradient of w_x is \(3, 2\), ours \(2, 3\)"):
        require_same_gradients({"w_x": np.ones((3, 2))}, wanted, "float32")
    for wrong in (1.01, np.nan):
        with pytest.raises(Disagreement, match=r"gradient of w_x is .* of its length away"):
            require_same_gradients({"w_x": np.full((2, 3), wrong)}, wanted, "float32")


def test_the_first_place_of_another_text_is_named() -> None:
    wanted: Any = np.zeros((GREEDY.places, GREEDY.batch), np.int32)
    other = wanted.copy()
    other[7:, 2] = 5
    both = {"greedy": wanted, "top-n 1": wanted}
    with pytest.raises(Disagreement, match="top-n 1 token 7 of text 2 is 5, ours 0"):
        require_same_continuations(both | {"top-n 1": other}, both)
    with pytest.raises(Disagreement, match=r"greedy tokens are \(49, 3\), ours \(50, 3\)"):
        require_same_continuations(both | {"greedy": wanted[1:]}, both)

"""Who takes part beside ours, who is left out and why, and what becomes of the rows."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_work import GRU, INSTALLED, TINY, Peer, build, way_of

from bench import contest, peers, shapes, train
from bench.layer import require_same_gradients
from bench.peers import Candidate
from bench.report import Row
from bench.sample import GREEDY, require_same_continuations
from bench.train import Learning, require_same_learning
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
    same = require_other_work_to_be_named
    return contest.Work("train", GRU, 15, {}, build, way_of, same)


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
    monkeypatch.setattr(contest, "load", lambda name, options: Peer(**options))
    with pytest.raises(ValueError, match="out of luck"):
        competed(work)


def test_each_shows_once_that_it_does_the_same_work(work: contest.Work) -> None:
    with contest.Pool() as pool:
        shown: list[str] = []
        held = contest.Contest(pool, "train", "tiny", way_of, lambda found, _: shown.append(found))
        for _ in range(3):
            entered = held.enter(("lstm_jax", "other", "away"), build)
            assert [each.name for each in entered] == ["lstm_jax", "other"]
    assert shown == ["other work"]
    assert held.left_out.all_agree


@pytest.mark.slow
def test_the_command_writes_rows_and_a_picture(
    tmp_path: Path,
    rows_of: Any,
    strangers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real one; the others have the same course, with other work."""
    monkeypatch.setattr(shapes, "SYSTEMS", (GRU,))
    (row,) = rows_of("train", "--systems tiny-gru --peers absent wrong --quick", code=1)
    printed = capsys.readouterr().out
    assert "wrong is left out: does other work: the first loss" in printed
    assert "the products alone: " in printed
    assert (row.bench, row.system, row.implementation) == ("train", "tiny-gru", "lstm_jax")
    assert (row.limit_fraction or 0) > 0
    assert "5 x [3, 8] @ [8, 24]" in row.settings["limit"]
    assert {"jax", "python"} < set(row.versions)
    assert int(row.threads["cores"]) >= 1
    assert row.date.count("-") == 2
    assert set(row.peers_left_out) == {"absent", "wrong"}
    line = json.loads((tmp_path / "rows.jsonl").read_text())
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
def test_the_least_of_a_layer_s_shapes_is_measured_if_quick_with_what_has_its_cell(
    rows_of: Any,
) -> None:
    flags = "--shapes 90,3,5,8 7,3,5,8 --cells gru mingru --backends scan parallel --quick"
    ours, peer, *alone = rows_of("layer", f"{flags} --peers flax-nnx")
    assert ours.system == peer.system == "gru 7,3,5,8 scan"
    assert ours.tokens_per_second == pytest.approx(21e3 / ours.median_ms)
    assert [row.settings["backend"] for row in alone] == ["scan", "parallel"]


def test_pytorch_has_threads_to_choose_on_a_cpu_alone() -> None:
    def names(cores: int, bench: str = "train") -> list[str]:
        return [each.name for each in peers.candidates("pytorch", bench, cores)]

    assert names(0) == ["eager", "torch.compile"]
    assert names(0, "sample") == ["eager"]
    assert names(4)[0] == "threads 4, oneDNN on"
    assert len(names(4)) == 5
    assert len(names(1)) == 3


OURS_LEARNT = Learning(10, 2.0, 0.1)
ONES, NONE_WRITTEN = np.ones((2, 3)), np.zeros((GREEDY.places, GREEDY.batch), np.int32)
OTHERS_WRITTEN = NONE_WRITTEN.copy()
OTHERS_WRITTEN[7:, 2] = 5
LEARNS = partial(require_same_learning, dtype="float32")
DESCENDS = partial(require_same_gradients, dtype="float32")


@pytest.mark.parametrize(
    ("require", "ours", "found", "message"),
    [
        (LEARNS, OURS_LEARNT, Learning(11, 2.0, 0.1), "trains 11 parameters, ours 10"),
        (LEARNS, OURS_LEARNT, Learning(10, 2.001, 0.1), "the first loss"),
        (LEARNS, OURS_LEARNT, Learning(10, math.nan, 0.1), "the first loss is nan"),
        (LEARNS, OURS_LEARNT, Learning(10, 2.0, 0.0), "the drop of the loss"),
        (DESCENDS, ONES, np.ones((3, 2)), r"gradient of w_x is \(3, 2\), ours \(2, 3\)"),
        (DESCENDS, ONES, 1.01 * ONES, "gradient of w_x is .* of its length away"),
        (DESCENDS, ONES, np.nan * ONES, "gradient of w_x is .* of its length away"),
        (require_same_continuations, NONE_WRITTEN, OTHERS_WRITTEN, "w_x token 7 of text 2 is 5"),
        (require_same_continuations, NONE_WRITTEN, NONE_WRITTEN[1:], r"tokens are \(49, 3\), ours"),
    ],
)
def test_the_first_difference_from_ours_is_named(
    require: Any, ours: Any, found: Any, message: str
) -> None:
    if require is not LEARNS:
        ours, found = {"w_x": ours}, {"w_x": found}
    require(ours, ours)
    with pytest.raises(Disagreement, match=message):
        require(found, ours)

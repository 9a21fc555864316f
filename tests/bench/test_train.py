"""The harness of training steps on tiny systems: same work, the rows' form, who is left out."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_work import GRU, INSTALLED, NAMES, POEMS, REVIEWS, TINY

from bench import contest, ours, peers, shapes, train
from bench.agreement import Learning, learning, require_same_learning
from bench.environment import environment
from bench.report import Row, read_rows
from bench.shapes import AnySystem, DType, System
from bench.workers import Disagreement, NotRun, Worker


def measure(system: AnySystem, **options: Any) -> tuple[list[Row], bool, str]:
    out, settings = io.StringIO(), train.Options(quick=True, **options)
    with contest.Pool() as pool:
        work = train.work_of(system, settings.dtype)
        rows, agrees = contest.compete(pool, work, settings, environment(), out)
    return rows, agrees, out.getvalue()


@pytest.mark.slow
def test_peers_in_processes_of_their_own_do_the_same_work_and_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contest, "Worker", Worker)
    monkeypatch.setattr(contest, "candidates", peers.candidates)
    rows, agrees, printed = measure(TINY)
    assert agrees, printed
    assert [row.implementation for row in rows] == ["lstm_jax", *INSTALLED]
    best = min(row.median_ms for row in rows[1:])
    assert rows[0].ratio_to_best_peer == pytest.approx(best / rows[0].median_ms)
    for row in rows:
        assert row.calls > 0
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.tokens_per_second == pytest.approx(15e3 / row.median_ms)
        # Of PyTorch's ways to run the fastest is named, beside the times of all.
        if row.implementation == "pytorch":
            assert f"{row.settings['candidate']} " in row.settings["tried"]
            assert "oneDNN off" in row.settings["tried"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "system",
    [
        each if each is GRU else pytest.param(each, marks=pytest.mark.slow)
        for each in (TINY, GRU, POEMS, REVIEWS)
    ],
    ids=lambda system: system.name,
)
def test_every_peer_does_the_same_work(name: str, system: AnySystem, dtype: DType) -> None:
    try:
        peer = peers.load(peers.module_of(name), {})
        found = learning(peer, system, dtype)
    except ValueError as reason:
        assert (system, name) in ((REVIEWS, "keras"), (REVIEWS, "equinox"))
        assert "no tiny-reviews are built" in str(reason)  # noqa: PT017
        return
    require_same_learning(found, learning(ours.Peer(), system, dtype), dtype)
    peer.training(system, dtype, system.initial_params()).step()


def test_the_first_loss_hangs_on_all_the_weights_below() -> None:
    for system in (POEMS, REVIEWS):
        params: Any = system.initial_params()
        first, *above = params.layers
        layers = (first._replace(w_x=-first.w_x), *above)
        whole, other = (
            ours.Peer().training(system.without_dropout(), "float32", each).loss()
            for each in (params, params._replace(layers=layers))
        )
        assert abs(whole - other) > 1e-3 * whole


def test_the_command_writes_rows_and_a_picture_and_names_a_missing_peer(
    tmp_path: Path,
    absent_peer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    file, picture = tmp_path / "rows.jsonl", tmp_path / "bars.png"
    files = ["--json", str(file), "--plot", str(picture)]
    assert train.main(["--systems", "tiny", "--peers", absent_peer, "--quick", *files]) == 0
    reason = "cannot run: a_library_that_nobody_wrote is not installed"
    assert f"absent is left out: {reason}" in capsys.readouterr().out
    (row,) = read_rows(file)
    assert (row.bench, row.system, row.implementation) == ("train", "tiny", "lstm_jax")
    assert row.ratio_to_best_peer is None
    assert (row.limit_fraction or 0) > 0
    assert {"jax", "python"} < set(row.versions)
    assert int(row.threads["cores"]) >= 1
    assert row.date.count("-") == 2
    assert row.peers_left_out == {"absent": reason}
    assert picture.read_bytes().startswith(b"\x89PNG")
    # One line each, without what it has not.
    (line,) = map(json.loads, file.read_text().splitlines())
    assert not {"memory_mb", "steps_per_second", "ratio_to_best_peer"} & set(line)


def test_a_peer_that_does_other_work_or_fails_is_not_timed(
    wrong_peer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    assert train.main(["--peers", wrong_peer, "--quick"]) == 1
    assert "wrong is left out: does other work: the first loss" in capsys.readouterr().out

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("other_work.Peer.training", fails)
    rows, agrees, printed = measure(TINY, peers=(wrong_peer,))
    assert not agrees
    assert [row.implementation for row in rows] == ["lstm_jax"]
    assert "wrong is left out: failed: RuntimeError: out of luck" in printed


@pytest.mark.slow
def test_of_several_ways_the_fastest_counts_and_one_that_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = [peers.Candidate(name, {"way": name}) for name in ("slow", "none", "fast")]
    monkeypatch.setattr(
        contest, "candidates", lambda name, *_: ways if name == "other" else [peers.ONLY]
    )
    monkeypatch.setitem(peers.PEERS, "other", "other_work")
    rows, agrees, _ = measure(GRU, peers=("other",))
    assert agrees
    assert rows[1].settings["candidate"] == "fast"
    assert "none cannot run: not here" in rows[1].settings["tried"]
    assert "slow 1" in rows[1].settings["tried"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Learning(11, 2.0, 0.1), "trains 11 parameters, ours 10"),
        (Learning(10, 2.001, 0.1), "the first loss"),
        (Learning(10, math.nan, 0.1), "the first loss is nan"),
        (Learning(10, 2.0, 0.0), "the drop of the loss"),
    ],
)
def test_disagreement_is_named(found: Learning, message: str) -> None:
    with pytest.raises(Disagreement, match=message):
        require_same_learning(found, Learning(10, 2.0, 0.1), "float32")


def test_every_system_feeds_distinct_random_tokens() -> None:
    for system in shapes.SYSTEMS:
        inputs, targets = system.batch(1)
        assert inputs.shape == (system.sequence_length, system.batch_size)
        if isinstance(system, System):
            assert (inputs[1:] == targets[:-1]).all()
        assert inputs.max() > system.vocabulary_size // 2
        assert (inputs != system.batch(0)[0]).any()
        assert dataclasses.asdict(system.without_dropout())["dropout"] == 0
        assert np.array_equal(inputs, system.batch(1)[0])


@pytest.mark.slow
def test_keras_on_another_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("bench.peers.keras_jax")
    monkeypatch.setattr(peer.keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="set KERAS_BACKEND=jax"):
        peer.Peer()


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(NotRun, match="a_library_that_nobody_wrote is not installed"):
        peers.load("a_library_that_nobody_wrote", {})

"""The sampling bench on tiny systems: same tokens, the rows' form, and peers that are not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from other_work import GRU, INSTALLED, TINY

from bench import filters, ours, peers, sample, shapes
from bench.agreement import GREEDY, continuations, require_same_continuations
from bench.environment import environment
from bench.limits import bytes_a_step, readers
from bench.ours import stored
from bench.report import Row, read_rows
from bench.shapes import Job, System
from bench.workers import Disagreement

WRITING = [name for name in ("pytorch", "flax-nnx") if name in INSTALLED]
# Flax is a dependency of the package; what needs another library is slow.
names = pytest.mark.parametrize(
    "name", [n if n == "flax-nnx" else pytest.param(n, marks=pytest.mark.slow) for n in WRITING]
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setattr(sample, "LONG_PROMPT", 40)
    monkeypatch.setattr(sample, "VOCABULARY_SIZE", 300)
    monkeypatch.setattr(sample, "FILTER_BATCHES", (2,))


def run(file: Path, *options: str, code: int = 0) -> list[Row]:
    small = ["--systems", "tiny", "--places", "6", "--prompt-length", "4", "--top-n", "3"]
    assert sample.main([*small, "--json", str(file), *options]) == code
    return read_rows(file)


@pytest.mark.slow
def test_all_write_and_are_timed_beside_prompts_weights_and_filters(
    tmp_path: Path, tiny: None
) -> None:
    rows = run(tmp_path / "rows.jsonl", "--rounds", "1", "--batch-sizes", "1", "3")
    entrants = ["lstm_jax", sample.ROUNDED, *WRITING]
    writing = [row for row in rows if row.system == "tiny"]
    assert [row.implementation for row in writing] == 2 * entrants
    for row in writing:
        batch = int(str(row.shape["batch"]))
        assert row.tokens_per_second == pytest.approx(6e3 * batch / row.median_ms)
        assert row.steps_per_second == pytest.approx(6e3 / row.median_ms)
        rounded = row.implementation == sample.ROUNDED
        assert row.dtype == ("bfloat16" if rounded else "float32")
        # Ours in bfloat16 has no peer in bfloat16 here.
        rivals = [
            each.median_ms
            for each in writing
            if each.shape["batch"] == batch and each.implementation in WRITING
        ]
        expected = min(rivals) / row.median_ms if row.implementation == "lstm_jax" else None
        assert row.ratio_to_best_peer == (expected and pytest.approx(expected))
        if not row.is_ours or batch != 1:
            assert row.limit_fraction is None
    others = {row.system: row for row in rows if row.system != "tiny"}
    assert list(others) == [
        *("tiny prompt 4", "tiny weights", "tiny prompt 40"),
        *("filter top-n 300", "filter top-p 300"),
    ]
    assert others["tiny prompt 40"].implementation == f"{sample.ROUNDED}, training scan"
    long = others["tiny prompt 40"]
    assert long.tokens_per_second == pytest.approx(40e3 / long.median_ms)
    assert int(others["tiny weights"].shape["places"]) == 6  # type: ignore[call-overload]


def test_the_command_writes_rows_and_a_plot_and_names_a_missing_peer(
    tmp_path: Path, tiny: None, absent_peer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "rates.png"
    options = ["--quick", "--batch-sizes", "1", "--peers", absent_peer, "--plot", str(picture)]
    rows = run(tmp_path / "rows.jsonl", *options)
    assert "absent is left out: cannot run: a_library_that" in capsys.readouterr().out
    (row,) = (row for row in rows if row.system == "tiny")
    assert (row.bench, row.implementation, row.shape["batch"]) == ("sample", "lstm_jax", 1)
    assert row.ratio_to_best_peer is None
    assert set(row.peers_left_out) == {"absent"}
    for kind in ("top-n", "top-p"):
        filtered = [row for row in rows if row.system == f"filter {kind} 300"]
        assert [row.implementation for row in filtered] == ["lstm_jax", "jnp.sort", "lax.top_k"]
        best = min(row.median_ms for row in filtered[1:])
        assert filtered[0].ratio_to_best_peer == pytest.approx(best / filtered[0].median_ms)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_peer_that_writes_other_tokens_is_not_timed_nor_a_filter_that_keeps_others(
    tmp_path: Path,
    tiny: None,
    wrong_peer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        filters, "keep_top_n", lambda logits, n: jnp.where(logits > 9, logits, -jnp.inf)
    )
    options = ["--quick", "--batch-sizes", "2", "--peers", wrong_peer]
    rows = run(tmp_path / "rows.jsonl", *options, code=1)
    assert {row.implementation for row in rows if row.system == "tiny"} == {"lstm_jax"}
    printed = capsys.readouterr().out
    assert "wrong is left out: does other work: greedy token" in printed
    assert "filters are left out: top-n by jnp.sort keeps 3 tokens" in printed


@names
@pytest.mark.parametrize(
    "system",
    [pytest.param(TINY, id="tiny"), pytest.param(GRU, id="tiny-gru", marks=pytest.mark.slow)],
)
def test_peers_continue_as_ours_and_write_bfloat16_and_all_tokens(
    name: str, system: System
) -> None:
    peer = peers.load(peers.module_of(name), {})
    wanted = continuations(ours.Peer(), system)
    require_same_continuations(continuations(peer, system), wanted)
    assert (wanted["greedy"] == wanted["top-n 1"]).all()
    assert len(np.unique(wanted["greedy"])) > 2
    params = system.initial_params()
    written = peer.sampling(system, "bfloat16", params, Job(64, 3, 20, top_n=0)).write()
    assert written.shape == (20, 64)
    assert written.dtype == np.int32
    assert written.min() >= 0
    assert written.max() < system.vocabulary_size
    assert len(np.unique(written[0])) > 2


@names
def test_peers_draw_from_the_likeliest(name: str) -> None:
    params, job = TINY.initial_params(), Job(64, 3, 1, temperature=2.0, top_n=3)
    model, params = stored(TINY, "float32", params)
    logits_BV = np.asarray(model.apply(params, None, job.prompts(TINY))[1][-1])
    rank_BV = (-logits_BV).argsort(-1).argsort(-1)
    peer = peers.load(peers.module_of(name), {})
    drawn_B = peer.sampling(TINY, "float32", params, job).write()[0]
    assert set(rank_BV[np.arange(job.batch), drawn_B]) == {0, 1, 2}


def test_disagreement_names_the_first_place() -> None:
    wanted = np.zeros((GREEDY.places, GREEDY.batch), np.int32)
    other = wanted.copy()
    other[7:, 2] = 5
    both = {"greedy": wanted, "top-n 1": wanted}
    with pytest.raises(Disagreement, match="top-n 1 token 7 of text 2 is 5, ours 0"):
        require_same_continuations(both | {"top-n 1": other}, both)
    with pytest.raises(Disagreement, match=r"greedy tokens are \(49, 3\), ours \(50, 3\)"):
        require_same_continuations(both | {"greedy": wanted[1:]}, both)


def test_a_step_reads_every_weight_but_the_rows_not_looked_up() -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        _, params = stored(TINY, dtype, TINY.initial_params())
        matrices = 32 + 8 * 32 + 2 * 8 * 32 + 8 * 11
        assert bytes_a_step(params) == width * matrices + 4 * (32 + 32 + 11)
        _, params = stored(GRU, dtype, GRU.initial_params())
        assert bytes_a_step(params) == width * (4 + 4 * 24 + 8 * 24 + 8 * 11) + 4 * (24 + 8 + 11)
    rows, columns = (np.asarray(run()).size for run in readers(4096, 3).values())
    assert 4 * rows * columns == 4096


def test_the_limit_is_told_from_the_steps_alone_and_the_fastest_reading() -> None:
    row = dataclasses.replace(empty_row(), median_ms=30.0, shape={"places": 11})
    prompts = [dataclasses.replace(row, median_ms=20.0)]
    weights = [dataclasses.replace(row, median_ms=each) for each in (9.0, 5.5)]
    assert sample.with_limit(row, prompts, weights).limit_fraction == pytest.approx(0.5)
    peer = dataclasses.replace(row, implementation="pytorch")
    assert sample.with_limit(peer, prompts, weights).limit_fraction is None
    faster = dataclasses.replace(row, median_ms=19.0)
    assert sample.with_limit(faster, prompts, weights).limit_fraction is None


def empty_row() -> Row:
    numbers: dict[str, Any] = dict.fromkeys(("median_ms", "p10_ms", "p90_ms", "compile_s"), 1.0)
    texts = {"bench": "sample", "system": "tiny", "implementation": "lstm_jax", "dtype": "float32"}
    counts: dict[str, Any] = {"calls": 1, "tokens_per_second": 1.0, "shape": {}}
    return Row(**vars(environment()), **numbers, **texts, **counts)

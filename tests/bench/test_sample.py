"""The sampling bench: who is timed beside what, the limit of the memory, and the filters."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest
from other_work import INSTALLED, TINY, build

from bench import filters, sample, shapes
from bench.report import Row, make_row
from bench.timing import Timing
from bench.workers import Built, Disagreement

WRITING = [name for name in ("pytorch", "flax-nnx") if name in INSTALLED]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setattr(sample, "LONG_PROMPT", 40)
    monkeypatch.setattr(sample, "VOCABULARY_SIZE", 300)
    monkeypatch.setattr(sample, "FILTER_BATCHES", (2,))


TINY_WORK = "--systems tiny --places 6 --prompt-length 4 --top-n 3"


def require_writing_beside_all_that_it_is_compared_with(rows: list[Row], peers: list[str]) -> None:
    writing = [row for row in rows if row.system == "tiny"]
    assert [row.implementation for row in writing] == 2 * ["lstm_jax", sample.ROUNDED, *peers]
    for row in writing:
        batch = int(str(row.shape["batch"]))
        assert row.tokens_per_second == pytest.approx(6e3 * batch / row.median_ms)
        assert row.steps_per_second == pytest.approx(6e3 / row.median_ms)
        rounded = row.implementation == sample.ROUNDED
        assert row.dtype == ("bfloat16" if rounded else "float32")
        # Ours in bfloat16 has no peer in bfloat16 here.
        assert (row.ratio_to_best_peer is None) == (row.implementation != "lstm_jax")
        assert (row.is_ours and batch == 1) or row.limit_fraction is None
    others = {row.system: row for row in rows if row.system != "tiny"}
    filtered = ["filter top-n 300", "filter top-p 300"]
    assert list(others) == ["tiny prompt 4", "tiny weights", "tiny prompt 40", *filtered]
    long = others["tiny prompt 40"]
    assert long.implementation == f"{sample.ROUNDED}, training scan"
    assert long.tokens_per_second == pytest.approx(40e3 / long.median_ms)
    assert int(str(others["tiny weights"].shape["places"])) == 6
    for kind in filtered:
        ours, *beside = (row for row in rows if row.system == kind)
        assert [row.implementation for row in beside] == ["jnp.sort", "lax.top_k"]
        best = min(row.median_ms for row in beside)
        assert ours.ratio_to_best_peer == pytest.approx(best / ours.median_ms)


def test_writing_is_timed_beside_prompts_weights_and_filters(
    rows_of: Any,
    tiny: None,
    strangers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of calls that do nothing."""

    def calls(peer: Any, system: Any, dtype: Any, job: Any) -> Built:
        names = ["write", "scan" if job.places == 1 else "prompt"]
        ours = not hasattr(peer, "way") and job.batch == 1
        return Built({name: build(peer).calls["step"] for name in names[: 1 + ours]}, {})

    def nothing(*names: str) -> Any:
        return lambda *_: Built(dict.fromkeys(names, build(None).calls["step"]), {})

    monkeypatch.setattr(sample, "build", calls)
    monkeypatch.setattr(sample, "continuations", lambda *_, **__: {})
    monkeypatch.setattr(sample, "build_reading", nothing("x @ weights, float32"))
    monkeypatch.setattr(sample, "build_filters", nothing("lstm_jax", "jnp.sort", "lax.top_k"))
    rows = rows_of("sample", f"{TINY_WORK} --peers wrong absent --rounds 1 --batch-sizes 1 3")
    require_writing_beside_all_that_it_is_compared_with(rows, ["wrong"])
    assert set(rows[0].peers_left_out) == {"absent"}
    assert "absent is left out: cannot run: a_library_that" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.beyond_ci
def test_all_really_write(rows_of: Any, tiny: None) -> None:
    rows = rows_of("sample", f"{TINY_WORK} --rounds 1 --batch-sizes 1 3")
    require_writing_beside_all_that_it_is_compared_with(rows, WRITING)


@pytest.mark.slow
def test_a_peer_that_writes_other_tokens_is_not_timed_and_quick_has_small_batches_alone(
    rows_of: Any, tiny: None, strangers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of("sample", f"{TINY_WORK} --quick --batch-sizes 2 64 --peers wrong", code=1)
    written = [row for row in rows if row.system == "tiny"]
    assert [(row.implementation, row.shape["batch"]) for row in written] == [("lstm_jax", 2)]
    assert "wrong is left out: does other work: greedy token" in capsys.readouterr().out


def test_filters_keep_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in filters.KINDS:
        built = filters.build_filters(kind, 2, 3, 300)
        assert set(built.calls) == {"lstm_jax", "jnp.sort", "lax.top_k"}
    monkeypatch.setattr(
        filters, "keep_top_n", lambda logits, n: jnp.where(logits > 9, logits, -jnp.inf)
    )
    with pytest.raises(Disagreement, match=r"top-n by jnp.sort keeps 3 tokens of a row otherwise"):
        filters.build_filters("top-n", 2, 3, 300)


def test_the_limit_is_told_from_the_steps_alone_and_the_fastest_reading() -> None:
    names, timing = ("sample", "tiny", "lstm_jax", "float32"), Timing(30.0, 30.0, 30.0, 1)
    row = make_row(*names, timing, tokens=1, shape={"places": 11})
    prompts = [dataclasses.replace(row, median_ms=20.0)]
    weights = [dataclasses.replace(row, median_ms=each) for each in (9.0, 5.5)]
    assert sample.with_limit(row, prompts, weights).limit_fraction == pytest.approx(0.5)
    peer = dataclasses.replace(row, implementation="pytorch")
    assert sample.with_limit(peer, prompts, weights).limit_fraction is None
    faster = dataclasses.replace(row, median_ms=19.0)
    assert sample.with_limit(faster, prompts, weights).limit_fraction is None

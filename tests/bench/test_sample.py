"""The sampling bench on tiny systems: same tokens, the rows' form, and peers that are not there."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bench import filters, peers, report, sample, shapes
from bench.agreement import (
    GREEDY,
    Disagreement,
    continuations,
    require_same_continuations,
)
from bench.environment import environment
from bench.limits import bytes_a_step, readers
from bench.our_sampling import OurSampler, stored
from bench.peers import sampling_peer_named
from bench.shapes import DType, Job, System

TINY = System("tiny", 11, "lstm", 2, 8, batch_size=3, sequence_length=5, dropout=0.5)
GRU = System("tiny-gru", 11, "gru", 1, 8, 3, 5, embedding_size=4)
LIBRARIES = {"pytorch": "torch", "flax-nnx": "flax"}
INSTALLED = tuple(name for name, library in LIBRARIES.items() if find_spec(library))
# Flax is a dependency of the package; what needs another library is slow.
names = pytest.mark.parametrize(
    "name",
    [n if n == "flax-nnx" else pytest.param(n, marks=pytest.mark.slow) for n in INSTALLED],
)
REQUIRED = {
    field.name for field in dataclasses.fields(report.Row) if field.default is dataclasses.MISSING
}
OURS_ROUNDED = "lstm_jax bfloat16 weights"


class WrongGates:
    """A peer that mixes up two gates: it costs the same, and is other work."""

    name = "wrong"

    def build(self, system: System, dtype: DType, params: Any, job: Job) -> Any:
        size = system.hidden_size
        order = np.r_[size : 2 * size, :size, 2 * size : 4 * size]
        layers = tuple(
            layer._replace(w_x=layer.w_x[:, order], w_h=layer.w_h[:, order], b=layer.b[order])
            for layer in params.layers
        )
        return OurSampler().build(system, dtype, params._replace(layers=layers), job)


def measure(system: System, **options: Any) -> tuple[sample.Measured, str]:
    out = io.StringIO()
    small = {"rounds": 1, "places": 6, "prompt_length": 4, "top_n": 3}
    settings = sample.Options(**(small | options))
    return sample.measure_system(system, settings, environment(), out), out.getvalue()


@pytest.mark.slow
def test_every_installed_peer_writes_the_same_and_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample, "LONG_PROMPT", 40)
    (sampling, others, agrees), printed = measure(TINY, batch_sizes=(1, 3))
    assert agrees, printed
    entrants = ["lstm_jax", OURS_ROUNDED, *INSTALLED]
    assert [row.implementation for row in sampling] == 2 * entrants
    for row in sampling:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        batch = row.shape["batch"]
        assert row.tokens_per_second == pytest.approx(6e3 * batch / row.median_ms)
        assert row.steps_per_second == pytest.approx(6e3 / row.median_ms)
        assert (row.shape["places"], row.shape["top_n"], row.dtype) == (
            (6, 3, "bfloat16" if row.implementation == OURS_ROUNDED else "float32")
        )
        rivals = [
            each.median_ms
            for each in sampling
            if each.shape["batch"] == batch and each.implementation in INSTALLED
        ]
        # Ours in bfloat16 has no peer in bfloat16 here.
        if row.implementation == "lstm_jax" and rivals:
            assert row.ratio_to_best_peer == pytest.approx(min(rivals) / row.median_ms)
        else:
            assert row.ratio_to_best_peer is None
        if not row.is_ours or batch != 1:
            assert row.limit_fraction is None
    systems = [row.system for row in others]
    assert systems == 2 * ["tiny prompt 4"] + 4 * ["tiny weights"] + systems[6:]
    assert set(systems[6:]) == {"tiny prompt 40"}
    assert [row.implementation for row in others[6:]] == [
        *entrants,
        "lstm_jax, training scan",
        f"{OURS_ROUNDED}, training scan",
    ]
    assert others[-1].tokens_per_second == pytest.approx(40e3 / others[-1].median_ms)


@names
@pytest.mark.parametrize(
    "system",
    [pytest.param(TINY, id="tiny"), pytest.param(GRU, id="tiny-gru", marks=pytest.mark.slow)],
)
def test_peers_continue_as_ours_and_write_bfloat16_and_all_tokens(
    name: str, system: System
) -> None:
    peer, params = sampling_peer_named(name), system.initial_params()
    ours = continuations(OurSampler(), system, params)
    require_same_continuations(continuations(peer, system, params), ours)
    assert (ours[0] == ours[1]).all()
    assert len(np.unique(ours[0])) > 2
    written = peer.build(system, "bfloat16", params, Job(64, 3, 20, top_n=0)).write()
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
    drawn_B = sampling_peer_named(name).build(TINY, "float32", params, job).write()[0]
    assert set(rank_BV[np.arange(job.batch), drawn_B]) == {0, 1, 2}


def test_command_writes_rows_and_a_plot_and_names_a_missing_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setitem(peers.SAMPLING_PEERS, "absent", "a_library_that_nobody_wrote")
    rows_file, plot_file = tmp_path / "rows.json", tmp_path / "rates.png"
    arguments = ["--systems", "tiny", "--peers", "absent", "--quick", "--batch-sizes", "1"]
    files = ["--json", str(rows_file), "--plot", str(plot_file)]
    assert sample.main([*arguments, *files]) == 0
    printed = capsys.readouterr().out
    assert "absent is left out: a_library_that_nobody_wrote is not inst" in printed
    rows = json.loads(rows_file.read_text())
    for row in rows:
        assert set(row) - {"steps_per_second", "limit_fraction"} == REQUIRED
        assert row["bench"] == "sample"
        assert row["shape"]["batch"] == 1
    (row,) = (row for row in rows if row["system"] == "tiny")
    assert row["implementation"] == "lstm_jax"
    assert row["ratio_to_best_peer"] is None
    assert row["peers_left_out"] == {"absent": "a_library_that_nobody_wrote is not installed"}
    filtered = {row["system"] for row in rows if row["system"].startswith("filter")}
    assert filtered == {"filter top-n 8009", "filter top-p 8009"}
    assert plot_file.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_writes_other_tokens_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setattr(sample, "sampling_peer_named", lambda name: WrongGates())
    monkeypatch.setattr(sample, "measure_all_filters", lambda *_: ([], True))
    measured, printed = measure(TINY, peers=("wrong",), quick=True, batch_sizes=(2,))
    assert not measured.agrees
    assert [row.implementation for row in measured.sampling] == ["lstm_jax"]
    assert "wrong is left out: does other work: greedy token" in printed
    arguments = ["--systems", "tiny", "--peers", "wrong", "--quick", "--batch-sizes", "2"]
    assert sample.main(arguments) == 1


def test_disagreement_names_the_first_place() -> None:
    ours = np.zeros((GREEDY.places, GREEDY.batch), np.int32)
    other = ours.copy()
    other[7:, 2] = 5
    with pytest.raises(Disagreement, match="top-n 1 token 7 of text 2 is 5, ours 0"):
        require_same_continuations([ours, other], [ours, ours])
    with pytest.raises(Disagreement, match=r"greedy tokens are \(49, 3\), ours \(50, 3\)"):
        require_same_continuations([ours[1:], ours], [ours, ours])


def test_a_step_reads_every_weight_but_the_rows_not_looked_up() -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        _, params = stored(TINY, dtype, TINY.initial_params())
        matrices = 32 + 8 * 32 + 2 * 8 * 32 + 8 * 11
        assert bytes_a_step(params) == width * matrices + 4 * (32 + 32 + 11)
        _, params = stored(GRU, dtype, GRU.initial_params())
        assert bytes_a_step(params) == width * (4 + 4 * 24 + 8 * 24 + 8 * 11) + 4 * (24 + 8 + 11)


def test_the_limit_is_told_from_the_steps_alone_and_the_fastest_reading() -> None:
    def timed(name: str, milliseconds: float, steps: int, **settings: str) -> Any:
        call = sample._Call("tiny", name, "float32", lambda: None, settings, steps, steps)
        timing = sample.Timing(milliseconds, milliseconds, milliseconds, 1)
        return sample._Timed(call, timing, 0.0)

    beside = [
        timed("lstm_jax", 20.0, 100),
        timed("slow", 9.0, 11, bytes="8"),
        timed("fast", 5.5, 11, bytes="8"),
    ]
    assert sample._limit_fraction(timed("lstm_jax", 30.0, 11), beside) == pytest.approx(0.5)
    assert sample._limit_fraction(timed("pytorch", 30.0, 11), beside) is None
    assert sample._limit_fraction(timed("lstm_jax", 19.0, 11), beside) is None


def test_readers_read_as_many_bytes_as_asked_for() -> None:
    rows, columns = (np.asarray(run()).size for run in readers(4096, 3).values())
    assert 4 * rows * columns == 4096


def test_filters_keep_the_same_and_one_that_does_not_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters, "VOCABULARY_SIZE", 300)
    for rows in filters.measure_filters("sample", environment(), batch=2, top_n=4, rounds=1):
        assert [row.implementation for row in rows] == ["lstm_jax", "jnp.sort", "lax.top_k"]
        best = min(row.median_ms for row in rows[1:])
        assert rows[0].ratio_to_best_peer == pytest.approx(best / rows[0].median_ms)
        assert rows[0].shape["batch"] == 2
    monkeypatch.setattr(
        filters, "keep_top_n", lambda logits, n: jnp.where(logits > 9, logits, -jnp.inf)
    )
    with pytest.raises(Disagreement, match=r"top-n by jnp.sort keeps 4 tokens"):
        filters.measure_filters("sample", environment(), batch=2, top_n=4, rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"places": 0}, "places is 0"),
        ({"prompt_length": 0}, "prompt_length is 0"),
        ({"batch_sizes": ()}, "batch_sizes are"),
        ({"batch_sizes": (4, 0)}, "batch_sizes are"),
        ({"top_n": -1}, "top_n is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample.Options(**options)
    with pytest.raises(ValueError, match="there is no peer 'numpy'"):
        sampling_peer_named("numpy")

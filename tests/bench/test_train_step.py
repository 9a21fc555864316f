"""The whole harness on a tiny system: same work, the rows' form, and peers that are not there."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import peers, report, shapes, train_step
from bench.agreement import Disagreement, Evidence, require_agreement
from bench.environment import environment
from bench.measure import interleave
from bench.ours import Ours
from bench.shapes import AnySystem, Classification, DType, System

TINY = System("tiny", 11, "lstm", 2, 8, batch_size=3, sequence_length=5, dropout=0.5)
GRU = System("tiny-gru", 11, "gru", 1, 8, 3, 5, embedding_size=4, clip_norm=0.01)
POEMS = System(
    *("tiny-poems", 11, "lstm", 1, 8, 3, 5),
    embedding_size=8,
    dropout=0.4,
    dropout_place="inputs",
    output_dropout=0.5,
    tied=True,
    carried=False,
)
REVIEWS = Classification(
    *("tiny-reviews", 60, 2, 8, 6, 5, 7, 4), dropout=0.2, word_dropout=0.4, dense_dropout=0.5
)
LIBRARIES = {"pytorch": "torch", "flax-nnx": "flax", "keras": "keras", "equinox": "equinox"}
INSTALLED = tuple(name for name, library in LIBRARIES.items() if find_spec(library))
REQUIRED = {field.name for field in dataclasses.fields(report.Row)}
REQUIRED -= {"steps_per_second", "memory_mb"}


class WrongGates:
    """A peer that mixes up two gates: it costs the same, and is other work."""

    name = "wrong"

    def build(self, system: System, dtype: DType, params: Any) -> Any:
        size = system.hidden_size
        order = np.r_[size : 2 * size, :size, 2 * size : 4 * size]
        layers = tuple(
            layer._replace(w_x=layer.w_x[:, order], w_h=layer.w_h[:, order], b=layer.b[order])
            for layer in params.layers
        )
        return Ours().build(system, dtype, params._replace(layers=layers))


def measure(system: AnySystem, **options: Any) -> tuple[list[report.Row], bool, str]:
    out = io.StringIO()
    settings = train_step.Options(**({"rounds": 1} | options))
    rows, agrees = train_step.measure_system(system, settings, environment(), out)
    return rows, agrees, out.getvalue()


@pytest.mark.slow
def test_peers_that_do_the_same_work_are_timed() -> None:
    rows, agrees, printed = measure(TINY, peers=("pytorch", "flax-nnx"))
    assert agrees, printed
    timed = [name for name in ("pytorch", "flax-nnx") if name in INSTALLED]
    assert [row.implementation for row in rows] == ["lstm_jax", *timed]
    best = min((row.median_ms for row in rows if not row.is_ours), default=math.nan)
    for row in rows:
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.tokens_per_second == pytest.approx(15e3 / row.median_ms)
        if row.is_ours and INSTALLED:
            assert row.ratio_to_best_peer == pytest.approx(best / row.median_ms)
        else:
            assert row.ratio_to_best_peer is None
        assert (row.limit_fraction is not None) == row.is_ours
    assert "5 x [3, 8] @ [8, 32]" in rows[0].settings["limit"]


@pytest.mark.slow
def test_gru_and_embedding_agree_in_bfloat16() -> None:
    rows, agrees, printed = measure(GRU, dtype="bfloat16", quick=True, peers=("equinox",))
    assert agrees, printed
    assert len(rows) == 1 + ("equinox" in INSTALLED)
    assert {row.dtype for row in rows} == {"bfloat16"}


@pytest.mark.slow
def test_poems_agree() -> None:
    rows, agrees, printed = measure(POEMS, quick=True, peers=("pytorch",))
    assert agrees, printed
    assert len(rows) == 1 + ("pytorch" in INSTALLED)


@pytest.mark.slow
def test_reviews_agree_where_they_are_built() -> None:
    rows, agrees, printed = measure(REVIEWS, quick=True, peers=("pytorch", "equinox"))
    assert agrees, printed
    assert len(rows) == 1 + ("pytorch" in INSTALLED)
    if "equinox" in INSTALLED:
        assert "equinox is left out: cannot run here: no tiny-reviews are built" in printed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("system", [TINY, GRU, POEMS, REVIEWS], ids=lambda system: system.name)
def test_every_installed_peer_does_the_same_work(system: AnySystem, dtype: DType) -> None:
    rows, agrees, printed = measure(system, quick=True, dtype=dtype)
    assert agrees, printed
    built = [name for name in INSTALLED if system is not REVIEWS or name in ("pytorch", "flax-nnx")]
    assert [row.implementation for row in rows] == ["lstm_jax", *built]


def test_the_first_loss_hangs_on_all_the_weights_below() -> None:
    for system in (POEMS, REVIEWS):
        params: Any = system.initial_params()
        first, *above = params.layers
        layers = (first._replace(w_x=-first.w_x), *above)
        whole, other = (
            Ours().build(system.without_dropout(), "float32", each).loss()
            for each in (params, params._replace(layers=layers))
        )
        assert abs(whole - other) > 1e-3 * whole


def test_command_writes_rows_and_names_a_missing_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "SYSTEMS", (TINY,))
    monkeypatch.setitem(peers.PEERS, "absent", "a_library_that_nobody_wrote")
    file = tmp_path / "rows.json"
    arguments = ["--systems", "tiny", "--peers", "absent", "--quick", "--json", str(file)]
    assert train_step.main(arguments) == 0
    assert "absent is left out: a_library_that_nobody_wrote is not inst" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())
    assert set(row) == REQUIRED
    assert row["bench"] == "train_step"
    assert row["implementation"] == "lstm_jax"
    assert row["ratio_to_best_peer"] is None
    assert "jax" in row["versions"]
    assert int(row["threads"]["cores"]) >= 1
    assert row["peers_left_out"] == {"absent": "a_library_that_nobody_wrote is not installed"}


def test_a_peer_that_does_other_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "peer_named", lambda name: WrongGates())
    rows, agrees, printed = measure(TINY, peers=("wrong",), quick=True)
    assert not agrees
    assert [row.implementation for row in rows] == ["lstm_jax"]
    assert "does other work: the first loss" in printed


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Evidence(11, 2.0, 0.1), "trains 11 parameters, ours 10"),
        (Evidence(10, 2.001, 0.1), "the first loss"),
        (Evidence(10, math.nan, 0.1), "the first loss is nan"),
        (Evidence(10, 2.0, 0.0), "the drop of the loss"),
    ],
)
def test_disagreement_is_named(found: Evidence, message: str) -> None:
    with pytest.raises(Disagreement, match=message):
        require_agreement(found, Evidence(10, 2.0, 0.1), "float32")


def test_every_system_feeds_distinct_random_tokens() -> None:
    for system in shapes.SYSTEMS:
        inputs, targets = system.batch(1)
        assert inputs.shape == (system.sequence_length, system.batch_size)
        if isinstance(system, System):
            assert (inputs[1:] == targets[:-1]).all()
        assert inputs.max() > system.vocabulary_size // 2
        assert (inputs != system.batch(0)[0]).any()


def test_rounds_give_every_call_its_turn_and_take_turns_at_being_first() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = interleave(calls, 2)
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["a", "b", "a", "b", "a"]
    assert timings["a"].calls == timings["b"].calls > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rounds": 0}, "rounds is 0")],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_step.Options(**options)
    with pytest.raises(ValueError, match="there is no peer 'numpy'"):
        peers.peer_named("numpy")
    with pytest.raises(ValueError, match="there is no system 'novel'"):
        shapes.system_named("novel")

"""The bench of bare layers on tiny shapes: same gradients, the rows' form, the limit."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import layer, report
from bench.agreement import Disagreement, require_same_gradients
from bench.environment import environment
from bench.jax_layer import OurLayer
from bench.measure import Timing
from bench.peers import layer_peer_named
from bench.products import (
    _SPECS,
    Floor,
    Product,
    _repeat,
    products_of_layer,
    products_of_system,
)
from bench.shapes import Classification, DType, LayerShape, LayerWork, System

LSTM, GRU = (LayerShape(cell, 7, 3, 5, 8) for cell in ("lstm", "gru"))
LIBRARIES = {"pytorch": "torch", "flax-nnx": "flax", "keras": "keras", "equinox": "equinox"}
INSTALLED = tuple(name for name, library in LIBRARIES.items() if find_spec(library))
# Flax is a dependency of the package; what needs another library is slow.
names = pytest.mark.parametrize(
    "name",
    [n if n == "flax-nnx" else pytest.param(n, marks=pytest.mark.slow) for n in INSTALLED],
)


class WrongGates:
    """A peer that mixes up two gates: it costs the same, and is other work."""

    name = "wrong"

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> Any:
        size = shape.hidden_size
        order = np.r_[size : 2 * size, :size, 2 * size : work.params.b.size]
        params = work.params._replace(w_h=work.params.w_h[:, order])
        return OurLayer().build(shape, dtype, work._replace(params=params))


@names
@pytest.mark.parametrize("shape", [LSTM, GRU], ids=lambda shape: shape.cell)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_peer_s_gradients_are_ours(name: str, shape: LayerShape, dtype: DType) -> None:
    work = shape.work()
    ours = OurLayer().build(shape, dtype, work).gradients()
    found = layer_peer_named(name).build(shape, dtype, work).gradients()
    missing = {"b_hn"} if shape is GRU and name == "flax-nnx" else set()
    assert set(found) == set(ours) - missing
    require_same_gradients(found, ours, dtype)


def test_the_gradients_are_those_of_the_layer() -> None:
    """Along a direction in all inputs at once, against the difference quotient of <ys, dys>."""
    work = LSTM.work()
    gradients = OurLayer().build(LSTM, "float32", work).gradients()
    draw = np.random.default_rng(1)
    along = {name: draw.standard_normal(each.shape) for name, each in gradients.items()}

    def value(step: float) -> float:
        def moved(name: str, array: Any) -> Any:
            return np.asarray(array, np.float32) + np.float32(step) * along[name].astype("f4")

        there = work._replace(
            params=type(work.params)(*map(moved, work.params._fields, work.params)),
            carry=type(work.carry)(*map(moved, work.carry._fields, work.carry)),
            xs=moved("xs", work.xs),
        )
        built = OurLayer().build(LSTM, "float32", there)
        return float(np.vdot(built.outputs(), work.dys))

    quotient = (value(1e-2) - value(-1e-2)) / 2e-2
    told = sum(float(np.vdot(gradients[name], along[name])) for name in along)
    assert told == pytest.approx(quotient, rel=1e-2)


def test_a_peer_that_does_other_work_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "layer_peer_named", lambda name: WrongGates())
    out = io.StringIO()
    options = layer.Options(peers=("wrong",), quick=True)
    rows, agrees = layer.measure_layer(LSTM, options, environment(), out)
    assert not agrees
    assert [row.implementation for row in rows] == ["lstm_jax"]
    assert "wrong is left out: does other work: gradient of" in out.getvalue()


def test_disagreement_names_the_gradient() -> None:
    ours = {"w_x": np.ones((2, 3))}
    require_same_gradients({}, ours, "float32")
    with pytest.raises(Disagreement, match=r"gradient of w_x is \(3, 2\), ours \(2, 3\)"):
        require_same_gradients({"w_x": np.ones((3, 2))}, ours, "float32")
    for wrong in (1.01, np.nan):
        with pytest.raises(Disagreement, match=r"gradient of w_x is .* of its length away"):
            require_same_gradients({"w_x": np.full((2, 3), wrong)}, ours, "float32")


def test_command_writes_rows_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "times.png")]
    shapes = ["--shapes", "7,3,5,8", "90,3,5,8", "--cells", "gru", "--quick"]
    assert layer.main([*shapes, "--peers", "flax-nnx", *files]) == 0
    ours, peer = json.loads((tmp_path / "rows.json").read_text())
    assert ours["system"] == peer["system"] == "gru 7,3,5,8"
    fields = {field.name for field in dataclasses.fields(report.Row)}
    assert set(ours) == fields - {"steps_per_second", "memory_mb"}
    assert ours["tokens_per_second"] == pytest.approx(21e3 / ours["median_ms"])
    assert ours["ratio_to_best_peer"] == pytest.approx(peer["median_ms"] / ours["median_ms"])
    assert ours["limit_fraction"] > 0
    assert peer["limit_fraction"] is None
    assert "7 x [3, 8] @ [8, 24]" in ours["settings"]["limit"]
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    assert "gru 90,3,5,8" not in capsys.readouterr().out


def multiplications(products: Any) -> int:
    return sum(
        count * each.rows * each.inner * each.columns * each.times
        for each, count in products.items()
    )


def test_products_are_three_times_those_of_a_forward_pass() -> None:
    for shape, gates in ((LSTM, 4), (GRU, 3)):
        assert multiplications(products_of_layer(shape)) == 3 * 21 * (5 + 8) * gates * 8
    # One-hot tokens are looked up in the first layer.
    system = System("s", 11, "lstm", 2, 8, batch_size=3, sequence_length=5)
    whole = 15 * (8 * 32 + (8 + 8) * 32 + 8 * 11)
    assert multiplications(products_of_system(system)) == 3 * whole
    # A small vocabulary goes through the first layer's input product once, not every place.
    embedded = dataclasses.replace(system, layers=1, embedding_size=4)
    assert multiplications(products_of_system(embedded)) == 3 * (
        11 * 4 * 32 + 15 * (8 * 32 + 8 * 11)
    )
    reviews = Classification("r", 60, 2, 8, 6, 5, 7, 4)
    assert multiplications(products_of_system(reviews)) == 3 * (
        30 * ((7 + 8) * 32 + (8 + 8) * 32) + 6 * (8 * 4 + 4)
    )


def test_the_floor_is_the_sum_over_all_products() -> None:
    needed = {Product(3, 8, 32, 7): 2, Product(21, 8, 32): 1}
    for dtype in ("float32", "bfloat16"):
        floor = Floor(needed, dtype)
        for call in floor.calls.values():
            call()
        each = [Timing(median, 0.0, 0.0, 1) for median in (5.0, 0.25)]
        timings = dict(zip(floor.calls, each, strict=True))
        assert floor.milliseconds(timings) == 10.25
        assert floor.shown(timings).startswith("10.25 ms: 2 of 7 x [3, 8] @ [8, 32] 10;")


def test_every_form_is_the_same_product() -> None:
    for spec in _SPECS.values():
        operands, result = spec.split("->")
        sizes, draw = {"m": 3, "k": 5, "n": 4}, np.random.default_rng(0)
        left, right = (
            draw.standard_normal([sizes[axis] for axis in axes]) for axes in operands.split(",")
        )
        found = np.asarray(_repeat(spec, "float32", 1, left, right))
        wanted = np.einsum(spec, left, right)
        assert found.shape == tuple(sizes[axis] for axis in result)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        # Of two in a loop, the second one's operand holds a number of the first one's result.
        left[0, 0] = 0
        first = np.einsum(spec, left, right)
        twice = np.asarray(_repeat(spec, "float32", 2, left, right))
        left[0, 0] = first[0, 0]
        np.testing.assert_allclose(twice, np.einsum(spec, left, right), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"shapes": ("1,2,3",)}, "a shape is '1,2,3'; expected four sizes"),
        ({"shapes": ("1,2,3,0",)}, "a shape is '1,2,3,0'"),
        ({"shapes": ()}, "there is nothing to measure"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.Options(**options)
    with pytest.raises(ValueError, match="there is no peer 'numpy'"):
        layer_peer_named("numpy")

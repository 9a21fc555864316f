"""The bench of bare layers on tiny shapes: same gradients, the limit, the rows' form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_work import LAYERS, NAMES

from bench import layer, ours, peers
from bench.agreement import gradients, require_same_gradients
from bench.products import (
    _SPECS,
    Floor,
    Product,
    _repeat,
    build_products,
    products_of_layer,
    products_of_system,
)
from bench.report import read_rows
from bench.shapes import Classification, DType, LayerShape, System
from bench.workers import Disagreement

LSTM, GRU = LAYERS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: shape.cell)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_peer_s_gradients_are_ours(name: str, shape: LayerShape, dtype: DType) -> None:
    ours_found = gradients(ours.Peer(), shape, dtype)
    found = gradients(peers.load(peers.module_of(name), {}), shape, dtype)
    missing = {"b_hn"} if shape is GRU and name == "flax-nnx" else set()
    assert set(found) == set(ours_found) - missing
    require_same_gradients(found, ours_found, dtype)


def test_disagreement_names_the_gradient() -> None:
    wanted = {"w_x": np.ones((2, 3))}
    require_same_gradients({}, wanted, "float32")
    with pytest.raises(Disagreement, match=r"gradient of w_x is \(3, 2\), ours \(2, 3\)"):
        require_same_gradients({"w_x": np.ones((3, 2))}, wanted, "float32")
    for wrong in (1.01, np.nan):
        with pytest.raises(Disagreement, match=r"gradient of w_x is .* of its length away"):
            require_same_gradients({"w_x": np.full((2, 3), wrong)}, wanted, "float32")


def test_the_command_writes_rows_and_a_plot_and_leaves_out_other_work(
    tmp_path: Path, wrong_peer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_file, picture = tmp_path / "rows.jsonl", tmp_path / "times.png"
    files = ["--json", str(rows_file), "--plot", str(picture)]
    shapes = ["--shapes", "7,3,5,8", "90,3,5,8", "--cells", "gru", "--quick"]
    assert layer.main([*shapes, "--peers", "flax-nnx", wrong_peer, *files]) == 1
    first, peer = read_rows(rows_file)
    assert first.system == peer.system == "gru 7,3,5,8"
    assert first.tokens_per_second == pytest.approx(21e3 / first.median_ms)
    assert first.ratio_to_best_peer == pytest.approx(peer.median_ms / first.median_ms)
    assert (first.limit_fraction or 0) > 0
    assert peer.limit_fraction is None
    assert "7 x [3, 8] @ [8, 24]" in first.settings["limit"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "gru 90,3,5,8" not in printed
    assert "wrong is left out: does other work: gradient of" in printed


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
        built = build_products(list(needed), dtype)
        assert len([call() for call in built.calls.values()]) == 2
        floor = Floor(needed, dict(zip(built.calls, (5.0, 0.25), strict=True)))
        assert floor.milliseconds == 10.25
        assert str(floor).startswith("10.25 ms: 2 of 7 x [3, 8] @ [8, 32] 10;")


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

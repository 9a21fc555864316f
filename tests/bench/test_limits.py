"""The products of a step or a layer, whose forms are the same, and the weights that are read."""

import dataclasses
import math

import numpy as np
import pytest
from other_work import GRU, GRU_LAYER, LSTM_LAYER, TINY

from bench import limits
from bench.limits import SPECS, Product, floor, products_of_layer, products_of_system, repeat
from bench.shapes import Classification, System
from lstm_jax.sampling import with_weights


def multiplications(found: dict[Product, int]) -> int:
    return sum(count * math.prod(each) for each, count in found.items())


def test_products_are_three_times_those_of_a_forward_pass() -> None:
    for shape, gates in ((LSTM_LAYER, 4), (GRU_LAYER, 3)):
        assert multiplications(products_of_layer(shape)) == 3 * 21 * (5 + 8) * gates * 8
    # One-hot tokens are looked up in the first layer.
    system = System("s", 11, "lstm", 2, 8, batch_size=3, sequence_length=5)
    whole = 15 * (8 * 32 + (8 + 8) * 32 + 8 * 11)
    assert multiplications(products_of_system(system)) == 3 * whole
    # A small vocabulary goes through the first layer's input product once, not every place.
    embedded = dataclasses.replace(system, layers=1, embedding_size=4)
    whole = 11 * 4 * 32 + 15 * (8 * 32 + 8 * 11)
    assert multiplications(products_of_system(embedded)) == 3 * whole
    reviews = Classification("r", 60, 2, 8, 6, 5, 7, 4)
    whole = 30 * ((7 + 8) * 32 + (8 + 8) * 32) + 6 * (8 * 4 + 4)
    assert multiplications(products_of_system(reviews)) == 3 * whole


def test_the_floor_is_the_sum_over_all_products() -> None:
    needed = {Product(3, 8, 32, 7): 2, Product(21, 8, 32): 1}
    built = limits.build_products(list(needed), "bfloat16")
    assert len([call() for call in built.calls.values()]) == 2
    total, told = floor(needed, dict(zip(built.calls, (5.0, 0.25), strict=True)))
    assert total == 10.25
    assert told.startswith("10.25 ms: 2 of 7 x [3, 8] @ [8, 32] 10;")


@pytest.mark.parametrize("spec", SPECS)
def test_every_form_is_the_same_product(spec: str) -> None:
    operands, result = spec.split("->")
    sizes, draw = {"m": 3, "k": 5, "n": 4}, np.random.default_rng(0)
    left, right = (
        draw.standard_normal([sizes[axis] for axis in axes]) for axes in operands.split(",")
    )
    found = np.asarray(repeat(spec, "float32", 1, left, right))
    assert found.shape == tuple(sizes[axis] for axis in result)
    np.testing.assert_allclose(found, np.einsum(spec, left, right), rtol=1e-5, atol=1e-6)
    # Of two in a loop, the second one's operand holds a number of the first one's result.
    left[0, 0] = 0
    first = np.einsum(spec, left, right)
    twice = np.asarray(repeat(spec, "float32", 2, left, right))
    left[0, 0] = first[0, 0]
    np.testing.assert_allclose(twice, np.einsum(spec, left, right), rtol=1e-5, atol=1e-5)


def test_a_step_reads_every_weight_but_the_rows_not_looked_up() -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        _, params = with_weights(TINY.model(dtype), TINY.initial_params(), dtype)
        matrices = 32 + 8 * 32 + 2 * 8 * 32 + 8 * 11
        assert limits.bytes_a_step(params) == width * matrices + 4 * (32 + 32 + 11)
        _, params = with_weights(GRU.model(dtype), GRU.initial_params(), dtype)
        assert limits.bytes_a_step(params) == width * (4 + 4 * 24 + 8 * 24 + 8 * 11) + 4 * (
            24 + 8 + 11
        )
    # An embedding that is also the output layer's weights is read whole.
    tied = dataclasses.replace(TINY, embedding_size=8, tied=True)
    size = 4 * (11 * 8 + 2 * 2 * 8 * 32 + 32 + 32 + 11)
    assert limits.bytes_a_step(tied.initial_params()) == size
    rows, columns = (np.asarray(run()).size for run in limits.readers(4096, 3).values())
    assert 4 * rows * columns == 4096

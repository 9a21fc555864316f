"""What the filters leave, against a float64 reference in numpy, and what is drawn from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax

from lstm_jax.sampling import filters as of_filters
from lstm_jax.sampling.filters import FilterOptions, make_filters, sharpen

# Whole, as generation compiles them; op by op, each loop would be compiled at each call.
choose, draw, filtered = map(jax.jit, (of_filters.choose, of_filters.draw, of_filters.filtered))
keep_min_p, keep_top_n, keep_top_p = map(
    jax.jit, (of_filters.keep_min_p, of_filters.keep_top_n, of_filters.keep_top_p)
)

top_k = jax.jit(of_filters.top_k, static_argnums=1)

NONE_SEEN = jnp.zeros(1, bool)


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In float64."""
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def quantised(seed: int, levels: int, size: int = 20) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of logits of which many are equal where there are few levels."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-levels, levels + 1, (5, size)) / 3).astype(np.float32)


def kept(logits: jax.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray(logits) > -np.inf


@given(seed=st.integers(0, 99), n=st.integers(0, 22), levels=st.integers(1, 30))
@example(seed=0, n=0, levels=30)
def test_top_n_keeps_exactly_the_n_largest_and_of_equals_the_first(
    seed: int, n: int, levels: int
) -> None:
    """Or all, where n is 0."""
    logits = quantised(seed, levels)
    found = np.asarray(keep_top_n(jnp.asarray(logits), jnp.int32(n)))
    for row, left in zip(logits, found, strict=True):
        best = np.lexsort((np.arange(20), -row))[: n or 20]
        expected = np.full(20, -np.inf, np.float32)
        expected[best] = row[best]
        np.testing.assert_array_equal(left, expected)


def test_top_n_holds_for_infinite_and_extreme_logits() -> None:
    logits = jnp.array([[-jnp.inf, 3e38, -3e38, 0.0, -0.0, 1e-40]], jnp.float32)
    assert kept(keep_top_n(logits, jnp.int32(2))).tolist() == [
        [False, True, False, False, False, True]
    ]


@given(seed=st.integers(0, 99), share=st.integers(1, 99), levels=st.integers(1, 30))
def test_top_p_keeps_the_fewest_most_likely_tokens_that_reach_the_share(
    seed: int, share: int, levels: int
) -> None:
    logits = quantised(seed, levels)
    p = share / 100 + 1e-4  # between the sums that equal logits can have
    found = kept(keep_top_p(jnp.asarray(logits), jnp.float32(p)))
    for row, probabilities, left in zip(logits, softmax(logits), found, strict=True):
        order = np.lexsort((np.arange(20), -row))
        before = np.concatenate([[0], np.cumsum(probabilities[order])[:-1]])
        expected = np.zeros(20, bool)
        expected[order[before < p]] = True
        np.testing.assert_array_equal(left, expected)


@pytest.mark.parametrize(("p", "tokens"), [(1e-6, 1), (0.25, 1), (0.26, 2), (0.9999, 4), (1.0, 4)])
def test_top_p_of_equal_tokens_takes_them_by_rising_id(p: float, tokens: int) -> None:
    found = kept(keep_top_p(jnp.zeros((1, 4)), jnp.float32(p)))
    assert found.tolist() == [[place < tokens for place in range(4)]]


@given(seed=st.integers(0, 99), p=st.floats(0, 1, width=32))
def test_min_p_keeps_what_is_likely_enough_beside_the_most_likely(seed: int, p: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(5, 20)).astype(np.float32) * 3
    ratio = softmax(logits)
    ratio /= ratio.max(-1, keepdims=True)
    found = kept(keep_min_p(jnp.asarray(logits), jnp.float32(p)))
    clear = np.abs(ratio - p) > 1e-5 * p
    np.testing.assert_array_equal(found[clear], (ratio >= p)[clear])
    assert found.any(-1).all()


@pytest.mark.parametrize("temperature", [1e-30, 0.1, 1.0, 7.0])
def test_temperature_scales_the_log_odds_and_never_overflows(temperature: float) -> None:
    logits = jnp.array([[1.0, 3.0, 2.5, -4.0]])
    found = np.asarray(sharpen(logits, jnp.float32(temperature)))
    with np.errstate(over="ignore"):
        expected = (np.asarray(logits) - 3) / np.float32(temperature)
    np.testing.assert_array_equal(found, expected)
    assert not np.isnan(found).any()


def test_filters_apply_in_turn_each_to_what_is_left() -> None:
    """Forbidden, penalty, temperature, top-n, top-p, min-p, as a numpy reference has them."""
    logits = np.random.default_rng(4).normal(size=(6, 30)).astype(np.float32) * 2
    seen = np.random.default_rng(5).random((6, 30)) < 0.3
    options = FilterOptions(
        temperature=0.7, top_n=12, top_p=0.83, min_p=0.04, repetition_penalty=1.3, forbidden=(2, 9)
    )
    found = filtered(jnp.asarray(logits), jnp.asarray(seen), make_filters(30, **options))
    wide = logits.astype(np.float64)
    wide[:, [2, 9]] = -np.inf
    wide = np.where(seen, np.where(wide > 0, wide / 1.3, wide * 1.3), wide) / 0.7
    for row, left in zip(wide, np.asarray(found), strict=True):
        order = np.argsort(-row)
        row[order[12:]] = -np.inf
        before = np.concatenate([[0], np.cumsum(softmax(row)[order])[:-1]])
        row[order[before >= 0.83]] = -np.inf
        row[softmax(row) < 0.04 * softmax(row).max()] = -np.inf
        np.testing.assert_allclose(softmax(left), softmax(row), rtol=1e-4)


def test_filters_that_are_off_leave_the_distribution() -> None:
    logits = np.random.default_rng(6).normal(size=(2, 9)).astype(np.float32)
    found = filtered(jnp.asarray(logits), jnp.zeros((2, 9), bool), make_filters(9))
    np.testing.assert_allclose(softmax(np.asarray(found)), softmax(logits), rtol=1e-6)


@pytest.mark.parametrize("size", [100, 700])
@pytest.mark.parametrize("top_n", [0, 1, 5, 8, 9, 64, 65])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_p": 0.6},
        {"temperature": 2.0, "min_p": 0.3},
        {"repetition_penalty": 2.0, "forbidden": [2, 11, 90]},
    ],
)
def test_numbers_spread_evenly_draw_each_token_in_proportion(
    size: int, top_n: int, options: FilterOptions
) -> None:
    """Of many equal logits, from a short list, the whole vocabulary, or its blocks of 512."""
    numbers = 4000
    logits = jnp.asarray(quantised(10, 12, size)[:1])
    seen = jnp.asarray(np.random.default_rng(11).random((1, size)) < 0.3)
    filters = make_filters(size, top_n=top_n, **options)
    expected = softmax(np.asarray(filtered(logits, seen, filters)))[0]
    rows = jnp.broadcast_to(logits, (numbers, size))
    found = choose(rows, (jnp.arange(numbers) + 0.5) / numbers, seen, filters)
    counts = np.bincount(np.asarray(found), minlength=size)
    assert counts[expected == 0].sum() == 0
    np.testing.assert_allclose(counts / numbers, expected, atol=1.01 / numbers)


@pytest.mark.parametrize("size", [200, 1000])
def test_a_draw_is_where_the_cumulative_probability_exceeds_the_number(size: int) -> None:
    logits = np.random.default_rng(8).normal(size=(400, size)).astype(np.float32) * 2
    logits[:, ::3] = -np.inf
    uniform = np.random.default_rng(9).random(400).astype(np.float32)
    cumulative = np.cumsum(softmax(logits), axis=-1)
    expected = (cumulative <= uniform[:, None]).sum(-1)
    found = np.asarray(draw(jnp.asarray(logits), jnp.asarray(uniform)))
    # Rounding may take a neighbour where the number is all but on the border.
    border = np.abs(np.take_along_axis(cumulative, found[:, None], -1)[:, 0] - uniform) < 1e-5
    np.testing.assert_array_equal(found[~border], expected[~border])
    assert border.sum() < 10
    assert (found % 3 != 0).all()


@pytest.mark.parametrize("size", [5, 1000])
@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1, 0, dtype=np.float32)])
def test_a_token_of_no_probability_is_never_drawn(uniform: float, size: int) -> None:
    logits = jnp.full((1, size), -jnp.inf).at[0, jnp.array([1, 3])].set(jnp.array([0.0, 1.0]))
    found = choose(logits, jnp.array([uniform]), NONE_SEEN, make_filters(size))
    assert int(found[0]) in (1, 3)


@given(
    seed=st.integers(0, 99),
    k=st.sampled_from([1, 8, 17]),
    levels=st.sampled_from([0, 1, 30, 10_000]),
)
@pytest.mark.parametrize("shape", [(15, 2208), (15, 2239), (70_001,)])
def test_the_k_largest_are_found_in_parts(
    shape: tuple[int, ...], k: int, seed: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-levels, levels + 1, shape).astype(np.float32)
    values[rng.random(shape) < rng.choice([0, 0.99, 1])] = -np.inf
    for found, wanted in zip(top_k(values, k), lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_temperature_zero_takes_the_most_likely_and_the_first_of_equals() -> None:
    logits = jnp.array([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    uniform = jnp.array([0.9, 0.9])
    greedy = make_filters(3, temperature=0)
    assert choose(logits, uniform, NONE_SEEN, greedy).tolist() == [1, 0]
    seen = jnp.array([[False, True, False], [False, False, False]])
    penalised = make_filters(3, temperature=0, repetition_penalty=1.5)
    assert choose(logits, uniform, seen, penalised).tolist() == [2, 0]
    forbidden = make_filters(3, temperature=0, forbidden=[1, 2])
    assert choose(logits, uniform, NONE_SEEN, forbidden).tolist() == [0, 0]

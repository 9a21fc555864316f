"""Laws of a layer over time: masks, resets, direction, chunks, causality; fast == reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    REVERSE,
    assert_near,
    assert_same_bits,
    draw_carry,
    fast,
    forms,
    init,
    run,
    run_with_gradients,
    weighted,
)
from hypothesis import given
from hypothesis import strategies as st
from jax import random

from lstm_jax.cells import zero_carry
from lstm_jax.recurrence import layer

T, B, D, H = 8, 3, 4, 5
# Between two lengths, float32's rounding: on CPU the length of the input product, one over all
# times, decides how XLA forms its sums, and so their last bit. Of one length, laws hold to the bit.
OTHER_LENGTH = 1e-6

reversals = pytest.mark.parametrize("reverse", REVERSE)
backends = pytest.mark.parametrize("backend", ["fast", "reference"])
seeds = st.integers(0, 2**31 - 1)


def draw(form: str, seed: int, dtype: Any = jnp.float32, shape: Any = (T, B, D, H)) -> Any:
    """Parameters, an initial carry and inputs."""
    times, batch, input_size, hidden = shape
    keys = random.split(random.key(seed), 3)
    params = init(form, keys[0], input_size, hidden, dtype)
    xs = random.normal(keys[2], (times, batch, input_size), dtype)
    return params, draw_carry(keys[1], params, batch), xs


def flags(seed: int, share: float, shape: tuple[int, ...] = (T, B)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def law(
    run: Any,
    params: Any,
    carry: Any,
    xs: Any,
    *,
    mask: Any = None,
    resets: Any = None,
    **options: Any,
) -> Any:
    """Runs with mask and resets always given, so that the laws of one form share a program."""
    shape = xs.shape[:2]
    mask = np.ones(shape, bool) if mask is None else mask
    resets = np.zeros(shape, bool) if resets is None else resets
    return run(params, carry, xs, mask=mask, resets=resets, **options)


values, gradients = partial(law, run), partial(law, run_with_gradients)


# Fast == reference -------------------------------------------------------------------------------


@forms
@reversals
@given(seed=seeds)
def test_fast_path_is_the_reference(float64: None, form: str, reverse: bool, seed: int) -> None:
    inputs = draw(form, seed, jnp.float64)
    options = {"mask": flags(seed, 0.7), "resets": flags(seed + 1, 0.3), "reverse": reverse}
    found = run_with_gradients(*inputs, **options)
    assert_near(found, run_with_gradients(*inputs, **options, backend="reference"), 1e-10)


@pytest.mark.slow
@forms
@reversals
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 2, 3), (13, 1, 1, 7), (20, 9, 17, 6)])
def test_fast_path_is_the_reference_in_more_shapes(
    float64: None, form: str, reverse: bool, shape: tuple[int, ...]
) -> None:
    inputs = draw(form, 2, jnp.float64, shape)
    options = {"mask": flags(3, 0.7, shape[:2]), "resets": flags(4, 0.3, shape[:2])}
    options["reverse"] = reverse
    found = run_with_gradients(*inputs, **options)
    assert_near(found, run_with_gradients(*inputs, **options, backend="reference"), 1e-10)


@forms
def test_fast_path_is_the_reference_without_mask_resets_or_carry(float64: None, form: str) -> None:
    params, _, xs = draw(form, 3, jnp.float64)
    fast = run_with_gradients(params, None, xs, backend="auto")
    zero = zero_carry(params, B)
    reference = run_with_gradients(params, zero, xs, backend="reference")
    assert_near(fast[0], reference[0], 1e-10)
    assert_near(fast[1][0], reference[1][0], 1e-10)
    assert_near(fast[1][2], reference[1][2], 1e-10)


@forms
@backends
@pytest.mark.parametrize("scaled", [False, True])
def test_tokens_are_one_hot_rows(float64: None, form: str, backend: str, scaled: bool) -> None:
    params, carry, _ = draw(form, 5, jnp.float64)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, D, (T, B))
    scale = rng.random((T, B)) if scaled else None
    dense = jnp.asarray(np.eye(D)[tokens] * (1 if scale is None else scale[..., None]))
    options = {"mask": flags(6, 0.7), "resets": flags(7, 0.3), "reverse": False}
    expected = run_with_gradients(params, carry, dense, **options, backend="reference")
    if backend == "reference":
        # Its gradients are JAX's own.
        found = run(params, carry, tokens, **options, input_scale=scale, backend=backend)
        assert_near(found, expected[0], 1e-10)
        return
    found = run_with_gradients(params, carry, tokens, **options, input_scale=scale, backend=backend)
    assert_near((found[0], found[1][:2]), (expected[0], expected[1][:2]), 1e-10)


@backends
def test_tokens_outside_the_table_are_read_as_the_nearest_row(backend: str) -> None:
    params, carry, _ = draw("lstm", 8)
    outside, inside = np.array([[-3, 0, D]] * T), np.array([[0, 0, D - 1]] * T)
    found = run(params, carry, outside, backend=backend)
    assert_same_bits(found, run(params, carry, inside, backend=backend))


@forms
def test_unrolling_changes_nothing(float64: None, form: str) -> None:
    """By a number that does not divide the times."""
    inputs = draw(form, 9, jnp.float64)
    options = {"mask": flags(9, 0.7), "resets": flags(10, 0.3), "reverse": True}
    unrolled = run_with_gradients(*inputs, **options, backend="scan", unroll=3)
    assert_near(unrolled, run_with_gradients(*inputs, **options, backend="scan"), 1e-10)


def test_unrolling_the_reference_changes_nothing(float64: None) -> None:
    inputs = draw("lstm", 9, jnp.float64)
    unrolled = run(*inputs, backend="reference", unroll=3)
    assert_near(unrolled, run(*inputs, backend="reference"), 1e-10)


# Chunks ------------------------------------------------------------------------------------------


@forms
@reversals
@given(seed=seeds)
def test_whole_is_chunked(form: str, reverse: bool, seed: int) -> None:
    params, carry, xs = draw(form, seed)
    mask, resets = flags(seed, 0.7), flags(seed + 1, 0.2)
    step = partial(values, params, reverse=reverse)
    whole = step(carry, xs, mask=mask, resets=resets)
    parts = [slice(0, 4), slice(4, 8)]
    if reverse:
        # A cut between two chunks is the later one's reset at its first time: backward that
        # zeroes the carry on its way out.
        parts.reverse()
    ys = []
    for part in parts:
        carry, ys_part = step(carry, xs[part], mask=mask[part], resets=resets[part])
        ys.append(ys_part)
    if reverse:
        ys.reverse()
    assert_near((carry, jnp.concatenate(ys)), whole, OTHER_LENGTH)


@forms
def test_chunked_gradients_are_the_whole_ones(float64: None, form: str) -> None:
    """Where the carry's gradient is let through; sums over time are split, so not to the bit."""
    params, carry, xs = draw(form, 11, jnp.float64)
    mask, resets = flags(11, 0.7), flags(12, 0.2)
    weights = random.normal(random.key(13), (T, B, H), jnp.float64)

    def loss(inputs: Any, *parts: slice) -> Any:
        params, carry, xs = inputs
        total = 0.0
        for part in parts:
            carry, ys = layer(params, carry, xs[part], mask=mask[part], resets=resets[part])
            total += jnp.vdot(weights[part], ys)
        return total + jnp.vdot(weights[0], carry.h)

    parts = [slice(0, 3), slice(3, T)]
    expected = jax.jit(jax.grad(lambda inputs: loss(inputs, slice(0, T))))((params, carry, xs))
    found = jax.jit(jax.grad(lambda inputs: loss(inputs, *parts)))((params, carry, xs))
    assert_near(found, expected, 1e-12)


# Masks -------------------------------------------------------------------------------------------


@forms
@reversals
def test_all_real_and_never_reset_is_neither_mask_nor_resets(form: str, reverse: bool) -> None:
    """Within float32's rounding: XLA fuses the two programs, and so contracts sums, differently."""
    params, carry, xs = draw(form, 19)
    found = values(params, carry, xs, reverse=reverse)
    assert_near(found, run(params, carry, xs, reverse=reverse), 1e-6)


@forms
@reversals
def test_masked_at_the_end_is_truncated(form: str, reverse: bool) -> None:
    """Backward too: reverse with padding is the reverse of the cut sequence."""
    params, carry, xs = draw(form, 20)
    length = T // 2
    mask = np.broadcast_to(np.arange(T)[:, None] < length, (T, B))
    final, ys = values(params, carry, xs, mask=mask, reverse=reverse)
    cut = values(params, carry, xs[:length], mask=mask[:length], reverse=reverse)
    assert_near((final, ys[:length]), cut, OTHER_LENGTH)
    np.testing.assert_array_equal(ys[length:], 0)


@forms
@reversals
@given(seed=seeds)
def test_masked_anywhere_is_removed(form: str, reverse: bool, seed: int) -> None:
    """A row's real steps moved to the front, in order, give what they gave where they were."""
    params, carry, xs = draw(form, seed)
    mask = flags(seed, 0.6)
    to_front = np.argsort(~mask, axis=0, kind="stable")
    moved = np.take_along_axis(np.asarray(xs), to_front[..., None], axis=0)
    moved_mask = np.take_along_axis(mask, to_front, axis=0)
    final, ys = values(params, carry, xs, mask=mask, reverse=reverse)
    moved_final, moved_ys = values(params, carry, moved, mask=moved_mask, reverse=reverse)
    back = np.take_along_axis(np.asarray(ys), to_front[..., None], axis=0)
    if fast(params) == "scan":
        assert_same_bits((moved_final, moved_ys), (final, back))
    assert_near((moved_final, moved_ys), (final, back), OTHER_LENGTH)
    np.testing.assert_array_equal(np.asarray(ys)[~mask], 0)


@forms
@reversals
def test_row_without_a_real_step_returns_its_carry_and_zeros(form: str, reverse: bool) -> None:
    params, carry, xs = draw(form, 21)
    mask = flags(21, 0.7)
    mask[:, 1] = False
    results, (_, dcarry, dxs) = gradients(params, carry, xs, mask=mask, reverse=reverse)
    final, ys = results
    assert_same_bits([a[1] for a in final], [a[1] for a in carry])
    np.testing.assert_array_equal(ys[:, 1], 0)
    np.testing.assert_array_equal(dxs[:, 1], 0)
    # The loss's gradient, drawn in another program, reaches the initial carry as the final one.
    dfinal = jax.grad(lambda final: weighted(1, (final, ys)))(final)
    assert_near([a[1] for a in dcarry], [a[1] for a in dfinal], 1e-6)


@forms
@backends
def test_masked_inputs_may_be_anything(form: str, backend: str) -> None:
    """NaN and infinity there change neither values nor gradients."""
    params, carry, xs = draw(form, 22)
    mask = flags(22, 0.6)
    clean = jnp.where(mask[..., None], xs, 0)
    expected = gradients(params, carry, clean, mask=mask, backend=backend)
    for poison in (np.nan, np.inf, -np.inf):
        poisoned = jnp.where(mask[..., None], xs, poison)
        found = gradients(params, carry, poisoned, mask=mask, backend=backend)
        assert_same_bits(found, expected)
        np.testing.assert_array_equal(np.asarray(found[1][2])[~mask], 0)


# Resets ------------------------------------------------------------------------------------------


@forms
@reversals
@pytest.mark.parametrize("at", [0, 4])
def test_reset_is_two_sequences(form: str, reverse: bool, at: int) -> None:
    params, carry, xs = draw(form, 30)
    mask = flags(30, 0.7)
    resets = np.zeros((T, B), bool)
    resets[at] = True
    step = partial(values, params, reverse=reverse)
    final, ys = step(carry, xs, mask=mask, resets=resets)
    zero = zero_carry(params, B)
    before = (zero if reverse else carry), xs[:at], mask[:at]
    after = (carry if reverse else zero), xs[at:], mask[at:]
    ends = []
    for first, xs_part, mask_part in (before, after):
        if len(xs_part):
            ends.append(step(first, xs_part, mask=mask_part))
        else:
            ends.append((first, ys[:0]))
    assert_near(final, ends[0 if reverse else 1][0], OTHER_LENGTH)
    assert_near(ys, jnp.concatenate([ys_part for _, ys_part in ends]), OTHER_LENGTH)


@forms
@reversals
def test_reset_on_a_masked_step_still_counts(form: str, reverse: bool) -> None:
    """The step between is no step, so a cut before it is a cut after it."""
    params, carry, xs = draw(form, 31)
    mask = np.ones((T, B), bool)
    mask[3] = False
    on_masked, on_next = np.zeros((2, T, B), bool)
    on_masked[3] = on_next[4] = True
    options = {"mask": mask, "reverse": reverse}
    found = gradients(params, carry, xs, resets=on_masked, **options)
    assert_same_bits(found, gradients(params, carry, xs, resets=on_next, **options))
    without = values(params, carry, xs, **options)
    assert np.any(np.asarray(without[1]) != np.asarray(found[0][1]))


@forms
def test_reset_on_a_masked_edge_zeroes_the_final_carry(form: str) -> None:
    params, carry, xs = draw(form, 32)
    for edge, reverse in ((T - 1, False), (0, True)):
        mask, resets = np.ones((T, B), bool), np.zeros((T, B), bool)
        mask[edge], resets[edge] = False, True
        final, _ = values(params, carry, xs, mask=mask, resets=resets, reverse=reverse)
        assert_same_bits(final, zero_carry(params, B))


# Nothing ---------------------------------------------------------------------------------------


@forms
@backends
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(0, B), (T, 0)])
def test_no_times_keep_the_carry_and_no_rows_give_none(
    form: str, backend: str, reverse: bool, shape: tuple[int, int]
) -> None:
    params, carry, xs = draw(form, 33)
    times, rows = shape
    carry, xs = jax.tree.map(lambda a: a[:rows], carry), xs[:times, :rows]
    tokens = np.zeros(shape, np.int32)
    options = {"mask": flags(1, 0.5, shape), "resets": flags(2, 0.5, shape), "remat": 2}
    for inputs, each in ((xs, options), (tokens, {})):
        (final, ys), (dparams, dcarry, *_) = run_with_gradients(
            params, carry, inputs, reverse=reverse, backend=backend, **each
        )
        assert ys.shape == (*shape, H) and ys.dtype == jnp.float32
        assert_same_bits(final, carry)
        assert_same_bits(dparams, jax.tree.map(jnp.zeros_like, params))
        dfinal = jax.grad(lambda final: weighted(1, (final, ys)))(final)  # noqa: B023
        assert_near(dcarry, dfinal, 1e-6)


# Causality ---------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="reverse")
def influence(params: Any, carry: Any, xs: Any, *, reverse: bool, resets: Any) -> Any:
    """Does y[t, b] depend on x[s, c], and on the carry's row c? `[t, b, s, c]`, `[t, b, c]`."""
    ys, pull = jax.vjp(
        lambda carry, xs: run(params, carry, xs, reverse=reverse, resets=resets)[1], carry, xs
    )
    times, batch, hidden = ys.shape
    one_row = jnp.eye(times * batch).reshape(times * batch, times, batch, 1)
    dcarry, dxs = jax.vmap(pull)(one_row * jnp.linspace(1, 2, hidden))
    on_carry = sum(jnp.abs(a).sum(-1) for a in dcarry) > 0
    shape = (times, batch)
    return (
        (jnp.abs(dxs).sum(-1) > 0).reshape(*shape, *shape),
        on_carry.reshape(*shape, batch),
    )


@forms
@reversals
@given(seed=seeds)
def test_output_depends_on_its_own_row_sequence_and_past(
    form: str, reverse: bool, seed: int
) -> None:
    params, carry, xs = draw(form, seed)
    resets = flags(seed, 0.2)
    on_inputs, on_carry = influence(params, carry, xs, reverse=reverse, resets=resets)
    sequence = np.cumsum(resets, axis=0)
    at = np.arange(T)
    past = at[:, None] <= at if reverse else at[:, None] >= at
    own_row = np.eye(B, dtype=bool)
    same = sequence[:, :, None, None] == sequence[None, None]
    expected = past[:, None, :, None] & own_row[None, :, None, :] & same
    np.testing.assert_array_equal(on_inputs, expected)
    first = sequence == sequence[-1] if reverse else sequence == 0
    np.testing.assert_array_equal(on_carry, first[..., None] & own_row[None])


@forms
def test_batch_rows_are_independent(form: str) -> None:
    params, carry, xs = draw(form, 40)
    mask, resets = flags(41, 0.7), flags(42, 0.2)
    order = np.array([2, 0, 1])
    final, ys = values(params, carry, xs, mask=mask, resets=resets)
    moved = values(
        params,
        jax.tree.map(lambda a: a[order], carry),
        xs[:, order],
        mask=mask[:, order],
        resets=resets[:, order],
    )
    assert_same_bits(moved, (jax.tree.map(lambda a: a[order], final), ys[:, order]))

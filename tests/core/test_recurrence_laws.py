"""Laws of a layer over time: equations, masks, resets, direction, chunks, causality."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    FORMS,
    SHAPE,
    B,
    D,
    H,
    T,
    assert_near,
    assert_same_bits,
    cases,
    draw,
    fast,
    flags,
    kinds,
    reversals,
    run,
    run_with_gradients,
    weighted,
)
from core_equations import over_time
from hypothesis import example, given
from hypothesis import strategies as st

from lstm_jax.cells import zero_carry
from lstm_jax.recurrence import layer

seeds = st.integers(0, 2**31 - 1)


def law(
    run: Any, params: Any, carry: Any, xs: Any, *, mask: Any = None, resets: Any = None, **rest: Any
) -> Any:
    """Runs with mask and resets always given, so that the laws of one form share a program."""
    shape = xs.shape[:2]
    mask = np.ones(shape, bool) if mask is None else mask
    resets = np.zeros(shape, bool) if resets is None else resets
    return run(params, carry, xs, mask=mask, resets=resets, **rest)


values, gradients = partial(law, run), partial(law, run_with_gradients)


# Equations ---------------------------------------------------------------------------------------


@kinds
@reversals
@given(seed=seeds)
@example(seed=63)  # with a reset on a masked step at both ends
def test_a_layer_is_its_equations_step_by_step(form: str, reverse: bool, seed: int) -> None:
    options: dict[str, Any] = {**flags(seed), "reverse": reverse}
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
        with jax.enable_x64(dtype == "float64"):
            inputs = draw(form, seed, dtype)
            expected = over_time(*inputs, **options)
            for backend in ("fast", "reference"):
                assert_near(values(*inputs, **options, backend=backend), expected, tolerance)


# Fast == reference -------------------------------------------------------------------------------


OTHER_SHAPES = [((1, 1, 1, 1), True), ((13, 1, 1, 7), False), ((20, 9, 17, 6), True)]


@cases(
    "form, shape, reverse",
    [(form, SHAPE, reverse) for form in FORMS for reverse in (False, True)]
    + [(f, *each) for f in ("lstm", "gru_before", "ln-lstm", "diag-lstm") for each in OTHER_SHAPES],
    *((form, SHAPE, reverse) for form in ("lstm", "gru_after") for reverse in (False, True)),
    ("diag-gru", SHAPE, False),
)
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 4.0]))
def test_fast_path_is_the_reference(
    float64: None, form: str, shape: tuple[int, ...], reverse: bool, seed: int, scale: float
) -> None:
    """With weights of several sizes; where all times are computed at once, so is the loop."""
    params, *inputs = draw(form, seed, jnp.float64, shape)
    params = jax.tree.map(lambda a: scale * a, params)
    options = {**flags(seed, shape[:2]), "reverse": reverse}
    of = partial(run_with_gradients, params, *inputs, **options)
    expected = of(backend="reference")
    for backend in {fast(params), "scan"}:
        assert_near(of(backend=backend), expected, 1e-10)


@kinds
def test_fast_path_is_the_reference_without_mask_resets_or_carry(float64: None, form: str) -> None:
    params, _, xs = draw(form, 3, jnp.float64)
    (found, (dparams, _, dxs)), (expected, (dreference, _, dxs_reference)) = (
        run_with_gradients(params, carry, xs, backend=backend)
        for carry, backend in ((None, "auto"), (zero_carry(params, B), "reference"))
    )
    assert_near((found, dparams, dxs), (expected, dreference, dxs_reference), 1e-10)


@kinds
@pytest.mark.parametrize(
    ("backend", "scaled"), [("fast", False), ("fast", True), ("reference", True)]
)
def test_tokens_are_one_hot_rows(float64: None, form: str, backend: str, scaled: bool) -> None:
    params, carry, _ = draw(form, 5, jnp.float64)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, D, (T, B))
    scale = rng.random((T, B)) if scaled else None
    dense = jnp.asarray(np.eye(D)[tokens] * (1 if scale is None else scale[..., None]))
    options = {**flags(6), "reverse": False}
    expected = run_with_gradients(params, carry, dense, **options, backend="reference")
    options |= {"input_scale": scale, "backend": backend}
    if backend == "reference":
        # Its gradients are JAX's own.
        assert_near(run(params, carry, tokens, **options), expected[0], 1e-10)
        return
    found = run_with_gradients(params, carry, tokens, **options)
    assert_near((found[0], found[1][:2]), (expected[0], expected[1][:2]), 1e-10)


@kinds
@cases("backend", ["scan", "reference"], "scan")
def test_unrolling_changes_nothing(float64: None, form: str, backend: str) -> None:
    """By a number that does not divide the times."""
    inputs, options = draw(form, 9, jnp.float64), {"reverse": True, "backend": backend, **flags(9)}
    unrolled = run_with_gradients(*inputs, **options, unroll=3)
    assert_near(unrolled, run_with_gradients(*inputs, **options), 1e-10)


# Chunks ------------------------------------------------------------------------------------------


@kinds
def test_chunked_gradients_are_the_whole_ones(float64: None, form: str) -> None:
    """Where the carry's gradient is let through; sums over time are split, so not to the bit."""
    inputs, given = draw(form, 11, jnp.float64), flags(11)

    def loss(inputs: Any, *parts: slice) -> Any:
        (params, carry, xs), each = inputs, []
        for part in parts:
            flags_part = {name: flag[part] for name, flag in given.items()}
            carry, ys = layer(params, carry, xs[part], **flags_part)
            each.append(ys)
        return weighted(1, (carry, jnp.concatenate(each)))

    found, expected = (
        jax.jit(jax.grad(lambda inputs: loss(inputs, *parts)))(inputs)  # noqa: B023
        for parts in ((slice(0, 3), slice(3, T)), (slice(0, T),))
    )
    assert_near(found, expected, 1e-12)


# Masks -------------------------------------------------------------------------------------------


@kinds
@reversals
@given(seed=seeds)
def test_masked_anywhere_is_removed(form: str, reverse: bool, seed: int) -> None:
    """A row's real steps moved to the front, in order, give what they gave where they were."""
    params, carry, xs = draw(form, seed)
    mask = flags(seed)["mask"]
    to_front = np.argsort(~mask, axis=0, kind="stable")
    moved = np.take_along_axis(np.asarray(xs), to_front[..., None], axis=0)
    moved_mask = np.take_along_axis(mask, to_front, axis=0)
    final, ys = values(params, carry, xs, mask=mask, reverse=reverse)
    found = values(params, carry, moved, mask=moved_mask, reverse=reverse)
    expected = (final, np.take_along_axis(np.asarray(ys), to_front[..., None], axis=0))
    if fast(params) == "scan":
        assert_same_bits(found, expected)
    assert_near(found, expected, 1e-6)
    np.testing.assert_array_equal(np.asarray(ys)[~mask], 0)


@kinds
@reversals
def test_row_without_a_real_step_returns_its_carry_and_zeros(form: str, reverse: bool) -> None:
    params, carry, xs = draw(form, 21)
    mask = flags(21)["mask"]
    mask[:, 1] = False
    results, (_, dcarry, dxs) = gradients(params, carry, xs, mask=mask, reverse=reverse)
    final, ys = results
    assert_same_bits([a[1] for a in final], [a[1] for a in carry])
    np.testing.assert_array_equal(ys[:, 1], 0)
    np.testing.assert_array_equal(dxs[:, 1], 0)
    # The loss's gradient, drawn in another program, reaches the initial carry as the final one.
    dfinal = jax.grad(lambda final: weighted(1, (final, ys)))(final)
    assert_near([a[1] for a in dcarry], [a[1] for a in dfinal], 1e-6)


@kinds
@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_masked_inputs_may_be_anything(form: str, backend: str) -> None:
    """NaN and infinity there change neither values nor gradients."""
    params, carry, xs = draw(form, 22)
    mask = flags(22)["mask"]
    expected, *others = (
        gradients(params, carry, jnp.where(mask[..., None], xs, filler), mask=mask, backend=backend)
        for filler in (0, np.nan, np.inf, -np.inf)
    )
    for found in others:
        assert_same_bits(found, expected)
        np.testing.assert_array_equal(np.asarray(found[1][2])[~mask], 0)


# Resets ------------------------------------------------------------------------------------------


@kinds
@reversals
def test_reset_on_a_masked_step_still_counts(form: str, reverse: bool) -> None:
    """The step between is no step, so a cut before it is a cut after it."""
    inputs = draw(form, 31)
    mask, on_masked, on_next = np.ones((T, B), bool), *np.zeros((2, T, B), bool)
    mask[3], on_masked[3], on_next[4] = False, True, True
    options = {"mask": mask, "reverse": reverse}
    found = gradients(*inputs, resets=on_masked, **options)
    assert_same_bits(found, gradients(*inputs, resets=on_next, **options))
    assert np.any(np.asarray(values(*inputs, **options)[1]) != np.asarray(found[0][1]))


# Nothing -----------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    ("shape", "backend", "reverse"),
    [
        ((0, B), "fast", False),
        ((0, B), "reference", True),
        ((T, 0), "fast", True),
        ((T, 0), "reference", False),
    ],
)
def test_no_times_keep_the_carry_and_no_rows_give_none(
    form: str, shape: tuple[int, int], backend: str, reverse: bool
) -> None:
    params, carry, xs = draw(form, 33, shape=(*shape, D, H))
    tokens = np.zeros(shape, np.int32)
    for inputs, each in ((xs, {**flags(1, shape), "remat": 2}), (tokens, {})):
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
    one_row = jnp.eye(T * B).reshape(T * B, T, B, 1)
    dcarry, dxs = jax.vmap(pull)(one_row * jnp.linspace(1, 2, ys.shape[-1]))
    on_carry = sum(jnp.abs(a).sum(-1) for a in dcarry) > 0
    return (jnp.abs(dxs).sum(-1) > 0).reshape(T, B, T, B), on_carry.reshape(T, B, B)


@kinds
@reversals
@given(seed=seeds)
def test_output_depends_on_its_own_row_sequence_and_past(
    form: str, reverse: bool, seed: int
) -> None:
    params, carry, xs = draw(form, seed)
    resets = flags(seed)["resets"]
    on_inputs, on_carry = influence(params, carry, xs, reverse=reverse, resets=resets)
    sequence, at = np.cumsum(resets, axis=0), np.arange(T)
    past = at[:, None] <= at if reverse else at[:, None] >= at
    own_row = np.eye(B, dtype=bool)
    same = sequence[:, :, None, None] == sequence[None, None]
    expected = past[:, None, :, None] & own_row[None, :, None, :] & same
    np.testing.assert_array_equal(on_inputs, expected)
    first = sequence == sequence[-1] if reverse else sequence == 0
    np.testing.assert_array_equal(on_carry, first[..., None] & own_row[None])

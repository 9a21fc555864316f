"""The fused cross-entropy against a log-softmax over all logits, in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, normals_like, second_order
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from lstm_jax.losses import OutputParams, TokenSums, chunk_times, fused_cross_entropy
from lstm_jax.precision import products

T, B, H, V = 6, 3, 4, 7


def fused(chunk: int | None, params: OutputParams, hs: Any, *rest: Any) -> TokenSums:
    return fused_cross_entropy(products(None, hs.dtype), chunk, params, hs, *rest)[0]


def plain(_: Any, params: OutputParams, hs: Any, targets: Any, mask: Any) -> TokenSums:
    logits = hs @ params.w + params.b
    likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    weight = jnp.ones(targets.shape) if mask is None else mask.astype(hs.dtype)
    correct = (logits.argmax(-1) == targets) * weight
    return TokenSums(-(weight * likelihoods).sum(), correct.sum(), weight.sum())


@partial(jax.jit, static_argnames=("chunk", "of"))
def sums_and_gradients(
    params: OutputParams, hs: Any, targets: Any, mask: Any, chunk: int | None = 4, of: Any = fused
) -> Any:
    def loss(params: OutputParams, hs: Any) -> Any:
        sums = of(chunk, params, hs, targets, mask)
        return 3 * sums.loss, sums

    (_, sums), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hs)
    return sums, gradients


def draw(seed: int, times: int = T, dtype: Any = np.float64) -> Any:
    shapes = OutputParams(np.zeros((H, V), dtype), np.zeros(V, dtype))
    params, hs = normals_like(seed, (shapes, np.zeros((times, B, H), dtype)))
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(rng.random((times, B)) < 0.6)
    return params, hs, jnp.asarray(rng.integers(0, V, (times, B))), mask


@given(
    seed=st.integers(0, 2**31 - 1),
    times_chunk=st.sampled_from([(T, None), (T, 1), (T, 4), (T, T), (T, 100), (1, None)]),
    masked=st.booleans(),
)
def test_values_and_gradients_are_log_softmaxs(
    float64: None, seed: int, times_chunk: tuple[int, int | None], masked: bool
) -> None:
    times, chunk = times_chunk
    params, hs, targets, mask = draw(seed, times)
    inputs = (params, hs, targets, mask if masked else None)
    found = sums_and_gradients(*inputs, chunk)
    assert_near(found, sums_and_gradients(*inputs, of=plain), 1e-12)
    assert found[0].weight == (mask.sum() if masked else times * B)


@pytest.mark.parametrize(
    ("scale", "dtype", "tolerance"),
    [(1e4, "float64", 1e-12), (-1e4, "float64", 1e-12), (1e4, "float32", 1e-5)],
)
def test_extreme_logits_are_finite_and_exact(
    float64: None, scale: float, dtype: str, tolerance: float
) -> None:
    params, *inputs = draw(3, dtype=dtype)
    params = jax.tree.map(lambda a: a * scale, params)
    found = sums_and_gradients(params, *inputs)
    assert found[0].loss > 1e4
    assert_near(found, sums_and_gradients(params, *inputs, of=plain), tolerance)


def test_second_order_is_log_softmaxs(float64: None) -> None:
    params, hs, targets, mask = draw(4)

    def loss(of: Any, inputs: Any) -> Any:
        return of(4, *inputs, targets, mask).loss

    found, expected = (
        jax.jit(partial(second_order, partial(loss, of)))((params, hs)) for of in (fused, plain)
    )
    assert_near(found, expected, 1e-10)
    ours = jax.jit(partial(loss, fused))
    check_grads(ours, ((params, hs),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_correct_counts_the_first_of_tied_tokens_on_real_steps() -> None:
    params = OutputParams(jnp.zeros((1, 4)), jnp.array([0.0, 2.0, 2.0, 1.0]))
    targets = jnp.array([[1, 2, 0], [1, 1, 1]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    sums = fused(None, params, jnp.zeros((2, 3, 1)), targets, mask)
    assert (float(sums.correct), float(sums.weight)) == (2, 4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_hidden_states_and_targets_may_be_anything(float64: None, poison: float) -> None:
    params, hs, targets, mask = draw(6)
    clean = jnp.where(mask[..., None], hs, 0)
    expected = sums_and_gradients(params, clean, targets, mask)
    hs = jnp.where(mask[..., None], hs, poison)
    targets = jnp.where(mask, targets, V + 5)
    assert_near(sums_and_gradients(params, hs, targets, mask), expected, 1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_target_outside_the_vocabulary_is_no_token(float64: None, masked: bool) -> None:
    params, hs, targets, mask = draw(9)
    rng = np.random.default_rng(0)
    outside = rng.choice([-100, -1, V, 2**31 - 1], (T, B))
    is_token = jnp.asarray(rng.random((T, B)) < 0.6)
    expected = sums_and_gradients(params, hs, targets, is_token & mask if masked else is_token)
    targets, mask = jnp.where(is_token, targets, outside), mask if masked else None
    assert_near(sums_and_gradients(params, hs, targets, mask), expected, 1e-12)


def test_narrow_targets_of_a_large_vocabulary() -> None:
    output = OutputParams(jnp.zeros((1, 300)), jnp.zeros(300))
    targets = np.array([[0, 255]], np.uint8)
    assert fused(None, output, jnp.zeros((1, 2, 1)), targets, None).weight == 2


@pytest.mark.parametrize(("times", "batch", "masked"), [(0, B, False), (T, 0, False), (T, B, True)])
def test_no_tokens_have_no_loss_and_no_gradient(times: int, batch: int, masked: bool) -> None:
    params, hs, targets, _ = draw(7, dtype=np.float32)
    mask = jnp.zeros((times, batch), bool) if masked else None
    found = sums_and_gradients(params, hs[:times, :batch], targets[:times, :batch], mask)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_chunks_never_hold_all_times_and_as_many_logits_as_suit_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chunk_times(50, 2, 3) == 25
    assert chunk_times(1, 2, 3) == 1
    assert chunk_times(1000, 64, 8192) == 3
    assert chunk_times(1000, 64, 10**6) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunk_times(1000, 64, 8192) == 128
    assert chunk_times(50, 2, 3) == 25
    assert chunk_times(20, 128, 793_000) == 1

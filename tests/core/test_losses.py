"""The fused cross-entropy against a log-softmax over all logits, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near, normals_like
from hypothesis import given
from hypothesis import strategies as st
from jax import random
from jax.test_util import check_grads

from lstm_jax.losses import OutputParams, TokenSums, chunk_times, fused_cross_entropy
from lstm_jax.precision import products

T, B, H, V = 6, 3, 4, 7
seeds = st.integers(0, 2**31 - 1)


def plain(params: OutputParams, hs: Any, targets: Any, mask: Any) -> TokenSums:
    logits = hs @ params.w + params.b
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[
        ..., 0
    ]
    weight = jnp.ones(targets.shape) if mask is None else mask.astype(hs.dtype)
    correct = (logits.argmax(-1) == targets) * weight
    return TokenSums(-(weight * log_likelihood).sum(), correct.sum(), weight.sum())


@partial(jax.jit, static_argnames=("chunk", "fused"))
def sums_and_gradients(
    params: OutputParams, hs: Any, targets: Any, mask: Any, *, chunk: int | None, fused: bool
) -> Any:
    def loss(params: OutputParams, hs: Any) -> Any:
        if not fused:
            sums = plain(params, hs, targets, mask)
        else:
            policy = products(None, hs.dtype)
            sums, _ = fused_cross_entropy(policy, chunk, params, hs, targets, mask)
        return 3 * sums.loss, sums

    (_, sums), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, hs)
    return sums, gradients


def draw(seed: int, times: int = T, dtype: Any = jnp.float64) -> Any:
    keys = random.split(random.key(seed), 5)
    params = OutputParams(
        random.normal(keys[0], (H, V), dtype), random.normal(keys[1], (V,), dtype)
    )
    hs = random.normal(keys[2], (times, B, H), dtype)
    targets = random.randint(keys[3], (times, B), 0, V)
    return params, hs, targets, random.bernoulli(keys[4], 0.6, (times, B))


@given(
    seed=seeds,
    times_chunk=st.sampled_from([(T, None), (T, 1), (T, 4), (T, T), (T, 100), (1, None)]),
    masked=st.booleans(),
)
def test_values_and_gradients_are_log_softmaxs(
    float64: None, seed: int, times_chunk: tuple[int, int | None], masked: bool
) -> None:
    times, chunk = times_chunk
    params, hs, targets, mask = draw(seed, times)
    mask = mask if masked else None
    found = sums_and_gradients(params, hs, targets, mask, chunk=chunk, fused=True)
    expected = sums_and_gradients(params, hs, targets, mask, chunk=None, fused=False)
    assert_near(found, expected, 1e-12)
    assert found[0].weight == (times * B if mask is None else mask.sum())


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_are_finite_and_exact(float64: None, scale: float) -> None:
    params, hs, targets, mask = draw(3)
    params = jax.tree.map(lambda a: a * scale, params)
    found = sums_and_gradients(params, hs, targets, mask, chunk=4, fused=True)
    expected = sums_and_gradients(params, hs, targets, mask, chunk=None, fused=False)
    assert found[0].loss > 1e4
    assert_near(found, expected, 1e-12)


def test_extreme_logits_are_finite_in_float32() -> None:
    params, hs, targets, mask = draw(3, dtype=jnp.float32)
    params = jax.tree.map(lambda a: a * 1e4, params)
    found = sums_and_gradients(params, hs, targets, mask, chunk=4, fused=True)
    expected = sums_and_gradients(params, hs, targets, mask, chunk=None, fused=False)
    assert_near(found, expected, 1e-5)


def test_second_order_is_log_softmaxs(float64: None) -> None:
    params, hs, targets, mask = draw(4)
    policy = products(None, hs.dtype)

    def fused(params: OutputParams, hs: Any) -> Any:
        return fused_cross_entropy(policy, 4, params, hs, targets, mask)[0].loss

    def naive(params: OutputParams, hs: Any) -> Any:
        return plain(params, hs, targets, mask).loss

    directions = normals_like(random.key(5), (params, hs))

    def twice(loss: Any, inputs: Any) -> Any:
        def along(inputs: Any) -> Any:
            gradients = jax.grad(loss, (0, 1))(*inputs)
            pairs = zip(*map(jax.tree.leaves, (gradients, directions)), strict=True)
            return sum(jnp.vdot(g, d) for g, d in pairs)

        return jax.grad(along)(inputs)

    found, expected = (jax.jit(partial(twice, loss))((params, hs)) for loss in (fused, naive))
    assert_near(found, expected, 1e-10)
    check_grads(jax.jit(fused), (params, hs), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_correct_counts_the_first_of_tied_tokens_on_real_steps() -> None:
    params = OutputParams(jnp.zeros((1, 4)), jnp.array([0.0, 2.0, 2.0, 1.0]))
    targets = jnp.array([[1, 2, 0], [1, 1, 1]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    policy = products(None, jnp.float32)
    sums, _ = fused_cross_entropy(policy, None, params, jnp.zeros((2, 3, 1)), targets, mask)
    assert (float(sums.correct), float(sums.weight)) == (2, 4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_hidden_states_and_targets_may_be_anything(float64: None, poison: float) -> None:
    params, hs, targets, mask = draw(6)
    clean = jnp.where(mask[..., None], hs, 0)
    expected = sums_and_gradients(params, clean, targets, mask, chunk=4, fused=True)
    hs = jnp.where(mask[..., None], hs, poison)
    targets = jnp.where(mask, targets, V + 5)
    found = sums_and_gradients(params, hs, targets, mask, chunk=4, fused=True)
    assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_target_outside_the_vocabulary_is_no_token(float64: None, masked: bool) -> None:
    params, hs, targets, mask = draw(9)
    outside = jnp.array([-100, -1, V, 2**31 - 1])[random.randint(random.key(0), (T, B), 0, 4)]
    is_token = random.bernoulli(random.key(1), 0.6, (T, B))
    both = is_token & mask if masked else is_token
    expected = sums_and_gradients(params, hs, targets, both, chunk=4, fused=True)
    targets, mask = jnp.where(is_token, targets, outside), mask if masked else None
    found = sums_and_gradients(params, hs, targets, mask, chunk=4, fused=True)
    assert_near(found, expected, 1e-12)
    assert found[0].weight == both.sum()


def test_narrow_targets_of_a_large_vocabulary() -> None:
    targets = np.array([[0, 255]], np.uint8)
    output = OutputParams(jnp.zeros((1, 300)), jnp.zeros(300))
    policy = products(None, jnp.float32)
    sums, _ = fused_cross_entropy(policy, None, output, jnp.zeros((1, 2, 1)), targets, None)
    assert sums.weight == 2


@pytest.mark.parametrize(("times", "batch"), [(0, B), (T, 0)])
def test_no_tokens_have_no_loss_and_no_gradient(times: int, batch: int) -> None:
    params, hs, targets, _ = draw(7, dtype=jnp.float32)
    hs, targets = hs[:times, :batch], targets[:times, :batch]
    found = sums_and_gradients(params, hs, targets, None, chunk=None, fused=True)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_nothing_real_has_no_loss_and_no_gradient(float64: None) -> None:
    params, hs, targets, mask = draw(7)
    found = sums_and_gradients(params, hs, targets, jnp.zeros_like(mask), chunk=4, fused=True)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, 0)


def test_uniform_model_has_the_vocabulary_as_perplexity(float64: None) -> None:
    params, hs, targets, mask = draw(8)
    uniform = OutputParams(jnp.zeros_like(params.w), jnp.full_like(params.b, 0.3))
    sums, _ = sums_and_gradients(uniform, hs, targets, mask, chunk=None, fused=True)
    assert abs(jnp.exp(sums.loss / sums.weight) - V) < 1e-12


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

"""Keras's own LSTM and GRU give the same values and gradients, in float32 within 1e-5.

As they were recorded; where Keras is installed, live with `--slow`. A masked step emits zeros here
and Keras's last output there, so outputs are compared, and weighed in the loss, on real steps.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Arrays, Peer

from lstm_jax import cells
from lstm_jax.stack import Directions, StackConfig, run_stack

os.environ["KERAS_BACKEND"] = "jax"
PEERS = ("keras", "jax")
TOLERANCE = 1e-5
FORMS = ("lstm", "gru_after", "gru_before")
# T, B, D, H
SHAPES = ((7, 3, 4, 5), (1, 2, 1, 6))
seeds = st.integers(0, 2**31 - 1)
forms = pytest.mark.parametrize("form", FORMS)
directions = pytest.mark.parametrize("bidirectional", [False, True])


def exchange_r_and_z(array: Any) -> Any:
    """Keras keeps a GRU's gates as z, r, h; we as r, z, n. Its own inverse."""
    z, r, n = jnp.split(jnp.asarray(array), 3, axis=-1)
    return jnp.concatenate([r, z, n], axis=-1)


def our_params(form: str, weights: list[Any]) -> Any:
    """One direction's parameters, of Keras's kernel, recurrent kernel and bias."""
    if form == "lstm":
        return cells.LSTMParams(*map(jnp.asarray, weights))
    w_x, w_h, b = map(exchange_r_and_z, weights)
    if form == "gru_before":
        return cells.GRUParams(w_x, w_h, b, None)
    b_x, b_h = b
    inside = 2 * w_h.shape[0]
    return cells.GRUParams(w_x, w_h, b_x + b_h.at[inside:].set(0), b_h[inside:])


def our_gradients(form: str, weights: list[Any]) -> Any:
    """The same structure of Keras's gradients: each of two summed biases has the sum's."""
    if form != "gru_after":
        return our_params(form, weights)
    w_x, w_h, b = map(exchange_r_and_z, weights)
    return cells.GRUParams(w_x, w_h, b[0], b[1, 2 * w_h.shape[0] :])


@cache
def their_layer(form: str, bidirectional: bool, shape: tuple[int, ...]) -> Any:
    import keras

    _, batch, input_size, hidden = shape
    options = {"return_sequences": True, "return_state": True}
    if form == "lstm":
        module = keras.layers.LSTM(hidden, **options)
    else:
        module = keras.layers.GRU(hidden, reset_after=form == "gru_after", **options)
    if bidirectional:
        module = keras.layers.Bidirectional(module)
    states = [np.zeros((batch, hidden), np.float32)] * count_states(form, bidirectional)
    module(np.zeros((batch, 1, input_size), np.float32), initial_state=states)

    seed_states = [variable.value for variable in module.non_trainable_variables]

    @jax.jit
    def results_and_gradients(inputs: Any, mask: Any, cotangents: Any) -> Any:
        def loss(inputs: Any) -> Any:
            weights, states, xs = inputs
            (ys, *finals), _ = module.stateless_call(
                weights, seed_states, jnp.swapaxes(xs, 0, 1), initial_state=states, mask=mask.T
            )
            results = (finals, jnp.swapaxes(ys, 0, 1))
            return inner(cotangents, results), results

        (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
        return results, gradients

    return module, results_and_gradients


@cache
def ours(form: str, bidirectional: bool) -> Any:
    name, _, reset = form.partition("_")
    config = StackConfig(cell=name, bidirectional=bidirectional, gru_reset=reset or "after")

    @jax.jit
    def results_and_gradients(inputs: Any, mask: Any, cotangents: Any) -> Any:
        def loss(inputs: Any) -> Any:
            results = run_stack(config, *inputs, mask=mask)
            return inner(cotangents, results), results

        (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
        return results, gradients

    return results_and_gradients


def inner(weights: Any, results: Any) -> Any:
    return sum(
        jnp.vdot(w, r) for w, r in zip(*map(jax.tree.leaves, (weights, results)), strict=True)
    )


def count_states(form: str, bidirectional: bool) -> int:
    return (2 if form == "lstm" else 1) * (2 if bidirectional else 1)


def by_direction(convert: Any, form: str, arrays: list[Any], bidirectional: bool) -> Any:
    """The stack's one layer: Keras lists the forward direction's arrays, then the backward's."""
    if not bidirectional:
        return (convert(form, arrays),)
    half = len(arrays) // 2
    return (Directions(convert(form, arrays[:half]), convert(form, arrays[half:])),)


def our_carry(form: str, states: list[Any]) -> Any:
    return cells.cell_named(form.partition("_")[0]).carry(*states)


def theirs(
    form: str, bidirectional: bool, shape: tuple[int, ...], seed: int, mask: np.ndarray
) -> Arrays:
    """Keras's values and gradients of a weighted sum of them, and all that they are of."""
    times, batch, input_size, hidden = shape
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    module, their_results = their_layer(form, bidirectional, shape)
    weights = [0.5 * normal(*v.shape) for v in module.trainable_variables]
    count = count_states(form, bidirectional)
    states, weight_states = ([normal(batch, hidden) for _ in range(count)] for _ in range(2))
    xs = normal(times, batch, input_size)
    weight_ys = normal(times, batch, hidden * (2 if bidirectional else 1)) * mask[..., None]

    (finals, ys), (dweights, dstates, dxs) = their_results(
        (weights, states, xs), mask, (weight_states, weight_ys)
    )
    found = {"mask": mask, "xs": xs, "weight_ys": weight_ys, "ys": ys, "dxs": dxs}
    for name, arrays in (
        ("weight", weights),
        ("dweight", dweights),
        ("state", states),
        ("dstate", dstates),
        ("weight_state", weight_states),
        ("final", finals),
    ):
        found |= {f"{name} {index}": array for index, array in enumerate(arrays)}
    return found


def numbered(found: Arrays, name: str) -> list[np.ndarray]:
    return [array for key, array in found.items() if key.rpartition(" ")[0] == name]


def compare(form: str, bidirectional: bool, found: Arrays) -> None:
    """Ours with Keras's."""

    def carry(name: str) -> Any:
        return by_direction(our_carry, form, numbered(found, name), bidirectional)

    mask, xs, weight_ys = (found[name] for name in ("mask", "xs", "weight_ys"))
    params = by_direction(our_params, form, numbered(found, "weight"), bidirectional)
    inputs = (params, carry("state"), xs)
    results, gradients = ours(form, bidirectional)(inputs, mask, (carry("weight_state"), weight_ys))
    assert_near(results, (carry("final"), found["ys"] * mask[..., None]), TOLERANCE)
    dparams = by_direction(our_gradients, form, numbered(found, "dweight"), bidirectional)
    assert_near(gradients, (dparams, carry("dstate"), found["dxs"]), TOLERANCE)


def draw_mask(shape: tuple[int, ...], seed: int, padded: bool) -> np.ndarray:
    times, batch = shape[:2]
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, times + 1, batch)
    anywhere = rng.random((times, batch)) < 0.6
    return np.arange(times)[:, None] < lengths if padded else anywhere


@forms
@pytest.mark.parametrize(
    ("bidirectional", "shape"),
    [(False, SHAPES[0]), (True, SHAPES[0]), (False, SHAPES[1])],
)
def test_values_and_gradients_are_kerass(
    peer: Peer, form: str, bidirectional: bool, shape: tuple[int, ...]
) -> None:
    variant = (form, bidirectional)
    mask = np.ones(shape[:2], bool)
    compare(*variant, peer(str((*variant, shape)), lambda: theirs(*variant, shape, 0, mask)))


@forms
@directions
@pytest.mark.parametrize("padded", [False, True])
def test_masked_steps_are_kerass(peer: Peer, form: str, bidirectional: bool, padded: bool) -> None:
    variant, mask = (form, bidirectional), draw_mask(SHAPES[0], 1, padded)
    assert not mask.all()
    found = peer(str((*variant, padded)), lambda: theirs(*variant, SHAPES[0], 1, mask))
    compare(*variant, found)


@pytest.mark.slow
@forms
@directions
@settings(max_examples=6)
@given(shape=st.sampled_from(SHAPES), seed=seeds)
def test_any_values_and_gradients_are_kerass(
    form: str, bidirectional: bool, shape: tuple[int, ...], seed: int
) -> None:
    pytest.importorskip("keras", reason="Keras, the reference, is not installed")
    mask = np.ones(shape[:2], bool)
    compare(form, bidirectional, theirs(form, bidirectional, shape, seed, mask))


@pytest.mark.slow
@forms
@directions
@settings(max_examples=6)
@given(seed=seeds, padded=st.booleans())
def test_any_masked_steps_are_kerass(
    form: str, bidirectional: bool, seed: int, padded: bool
) -> None:
    pytest.importorskip("keras", reason="Keras, the reference, is not installed")
    mask = draw_mask(SHAPES[0], seed, padded)
    compare(form, bidirectional, theirs(form, bidirectional, SHAPES[0], seed, mask))

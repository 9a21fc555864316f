"""PyTorch's own LSTM, GRU and RNN give the same values and gradients, in float32 within 1e-5."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax import cells
from lstm_jax.stack import Directions, StackConfig, run_stack

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

TOLERANCE = 1e-5
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
# T, B, D, H. Not a single unit: where that one saturates, 1 - h^2 cancels, a tanh's last bit weighs
# 6e-5 of the gradient, and no other unit sets the scale.
SHAPES = ((7, 3, 4, 5), (1, 2, 1, 6))
seeds = st.integers(0, 2**31 - 1)
variants = pytest.mark.parametrize(
    ("cell", "layers", "bidirectional"),
    [(c, n, b) for c in MODULES for n in (1, 2) for b in (False, True)],
)


def suffixes(layers: int, bidirectional: bool) -> list[list[str]]:
    ends = ("", "_reverse") if bidirectional else ("",)
    return [[f"l{index}{end}" for end in ends] for index in range(layers)]


def our_params(read: Any, cell: str, suffix: str) -> Any:
    """One direction's parameters, of PyTorch's weights or of a combination of them.

    `read(name)` gives the array of that name: `weight_ih` [G, D], `weight_hh` [G, H], ...
    """
    w_x, w_h = (read(f"weight_{side}_{suffix}").T for side in ("ih", "hh"))
    b_ih, b_hh = (read(f"bias_{side}_{suffix}") for side in ("ih", "hh"))
    if cell == "lstm":
        return cells.LSTMParams(w_x, w_h, b_ih + b_hh)
    if cell == "rnn":
        return cells.RNNParams(w_x, w_h, b_ih + b_hh)
    inside = 2 * w_h.shape[0]
    outside = np.concatenate([b_hh[:inside], np.zeros_like(b_hh[inside:])])
    return cells.GRUParams(w_x, w_h, b_ih + outside, b_hh[inside:])


def our_gradients(read: Any, cell: str, suffix: str) -> Any:
    """The same structure of PyTorch's gradients: each of two summed biases has the sum's."""
    w_x, w_h = (read(f"weight_{side}_{suffix}").T for side in ("ih", "hh"))
    b_ih, b_hh = (read(f"bias_{side}_{suffix}") for side in ("ih", "hh"))
    if cell == "lstm":
        return cells.LSTMParams(w_x, w_h, b_ih)
    if cell == "rnn":
        return cells.RNNParams(w_x, w_h, b_ih)
    return cells.GRUParams(w_x, w_h, b_ih, b_hh[2 * w_h.shape[0] :])


def by_layer(convert: Any, cell: str, layers: int, bidirectional: bool) -> tuple[Any, ...]:
    return tuple(
        Directions(*(convert(cell, suffix) for suffix in of_layer))
        if bidirectional
        else convert(cell, of_layer[0])
        for of_layer in suffixes(layers, bidirectional)
    )


def our_carry(states: list[Any], cell: str, layers: int, bidirectional: bool) -> tuple[Any, ...]:
    """PyTorch's `[layers * directions, B, H]` states as the stack's carry."""
    carry = cells.cell_named(cell).carry
    each = [carry(*(state[i] for state in states)) for i in range(len(states[0]))]
    if bidirectional:
        return tuple(Directions(each[2 * i], each[2 * i + 1]) for i in range(layers))
    return tuple(each)


def to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


@cache
def ours(cell: str, layers: int, bidirectional: bool) -> Any:
    config = StackConfig(cell=cell, layers=layers, bidirectional=bidirectional)

    @jax.jit
    def results_and_gradients(inputs: Any, mask: Any, weights: Any) -> Any:
        def loss(inputs: Any) -> Any:
            results = run_stack(config, *inputs, mask=mask)
            return sum(
                jnp.vdot(w, r)
                for w, r in zip(*map(jax.tree.leaves, (weights, results)), strict=True)
            ), results

        (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
        return results, gradients

    return results_and_gradients


def compare(
    cell: str,
    layers: int,
    bidirectional: bool,
    shape: tuple[int, ...],
    seed: int,
    lengths: np.ndarray | None = None,
) -> None:
    times, batch, input_size, hidden = shape
    rng = np.random.default_rng(seed)
    directions = 2 if bidirectional else 1

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    torch.manual_seed(seed)
    module = getattr(torch.nn, MODULES[cell])(
        input_size, hidden, num_layers=layers, bidirectional=bidirectional
    )
    xs, weight_ys = normal(times, batch, input_size), normal(times, batch, directions * hidden)
    states, weight_states = (
        [normal(layers * directions, batch, hidden) for _ in range(2 if cell == "lstm" else 1)]
        for _ in range(2)
    )

    xs_t = torch.tensor(xs, requires_grad=True)
    states_t = [torch.tensor(s, requires_grad=True) for s in states]
    inputs_t = xs_t
    if lengths is not None:
        inputs_t = torch.nn.utils.rnn.pack_padded_sequence(
            xs_t, torch.tensor(lengths), enforce_sorted=False
        )
    ys_t, finals_t = module(inputs_t, tuple(states_t) if cell == "lstm" else states_t[0])
    if lengths is not None:
        ys_t, _ = torch.nn.utils.rnn.pad_packed_sequence(ys_t, total_length=times)
    finals_t = list(finals_t) if cell == "lstm" else [finals_t]
    loss = (torch.tensor(weight_ys) * ys_t).sum()
    for weight, final in zip(weight_states, finals_t, strict=True):
        loss = loss + (torch.tensor(weight) * final).sum()
    loss.backward()

    named = dict(module.named_parameters())
    variant = (cell, layers, bidirectional)
    layers_in = by_layer(partial(our_params, lambda n: to_numpy(named[n])), *variant)
    dlayers = by_layer(partial(our_gradients, lambda n: to_numpy(named[n].grad)), *variant)
    mask = None if lengths is None else np.arange(times)[:, None] < lengths
    results, gradients = ours(*variant)(
        (layers_in, our_carry(states, *variant), xs),
        mask,
        (our_carry(weight_states, *variant), weight_ys),
    )
    expected = (our_carry([to_numpy(f) for f in finals_t], *variant), to_numpy(ys_t))
    assert_near(results, expected, TOLERANCE)
    dstates = our_carry([to_numpy(s.grad) for s in states_t], *variant)
    assert_near(gradients, (dlayers, dstates, to_numpy(xs_t.grad)), TOLERANCE)


@variants
@settings(max_examples=5)
@given(shape=st.sampled_from(SHAPES), seed=seeds)
def test_values_and_gradients_are_pytorchs(
    cell: str, layers: int, bidirectional: bool, shape: tuple[int, ...], seed: int
) -> None:
    compare(cell, layers, bidirectional, shape, seed)


@pytest.mark.parametrize("cell", MODULES)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(1, 7), min_size=3, max_size=3), seed=seeds)
def test_masked_sequences_are_pytorchs_packed_ones(
    cell: str, lengths: list[int], seed: int
) -> None:
    compare(cell, 2, True, SHAPES[0], seed, np.array(lengths))


@pytest.mark.slow
@variants
@pytest.mark.parametrize("shape", [(12, 2, 3, 8), (40, 5, 16, 32), (3, 17, 9, 4)])
@settings(max_examples=5)
@given(seed=seeds)
def test_values_and_gradients_are_pytorchs_in_more_shapes(
    cell: str, layers: int, bidirectional: bool, shape: tuple[int, ...], seed: int
) -> None:
    compare(cell, layers, bidirectional, shape, seed)
    lengths = np.random.default_rng(seed).integers(1, shape[0] + 1, shape[1])
    compare(cell, layers, bidirectional, shape, seed, lengths)

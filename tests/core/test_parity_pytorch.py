"""PyTorch's own LSTM, GRU and RNN give the same values and gradients, in float32 within 1e-5.

As they were recorded; where PyTorch is installed, live with `--slow`.
"""

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
from recorded import Arrays, Peer

from lstm_jax import cells
from lstm_jax.stack import Directions, StackConfig, run_stack

PEERS = ("torch",)
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


def theirs(
    cell: str,
    layers: int,
    bidirectional: bool,
    shape: tuple[int, ...],
    seed: int,
    lengths: np.ndarray | None = None,
) -> Arrays:
    """PyTorch's values and gradients of a weighted sum of them, and all that they are of."""
    import torch

    times, batch, input_size, hidden = shape
    rng = np.random.default_rng(seed)
    directions = 2 if bidirectional else 1

    def normal(*shape: int) -> Any:
        return torch.tensor(rng.standard_normal(shape).astype(np.float32))

    torch.manual_seed(seed)
    module = getattr(torch.nn, MODULES[cell])(
        input_size, hidden, num_layers=layers, bidirectional=bidirectional
    )
    xs, weight_ys = normal(times, batch, input_size), normal(times, batch, directions * hidden)
    states, weight_states = (
        [normal(layers * directions, batch, hidden) for _ in range(2 if cell == "lstm" else 1)]
        for _ in range(2)
    )
    for tensor in (xs, *states):
        tensor.requires_grad_()
    inputs = xs
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            xs, torch.tensor(lengths), enforce_sorted=False
        )
    ys, finals = module(inputs, tuple(states) if cell == "lstm" else states[0])
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=times)
    finals = list(finals) if cell == "lstm" else [finals]
    loss = (weight_ys * ys).sum()
    for weight, final in zip(weight_states, finals, strict=True):
        loss = loss + (weight * final).sum()
    loss.backward()

    found = {"xs": xs, "weight_ys": weight_ys, "ys": ys, "dxs": xs.grad}
    for index, state in enumerate(states):
        found |= {f"state{index}": state, f"dstate{index}": state.grad}
        found |= {f"weight_state{index}": weight_states[index], f"final{index}": finals[index]}
    for name, parameter in module.named_parameters():
        found |= {name: parameter, f"d{name}": parameter.grad}
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    return arrays if lengths is None else {"lengths": lengths, **arrays}


def compare(cell: str, layers: int, bidirectional: bool, found: Arrays) -> None:
    """Ours with PyTorch's."""
    variant = (cell, layers, bidirectional)

    def carry(name: str) -> Any:
        states = [found[f"{name}{index}"] for index in range(2 if cell == "lstm" else 1)]
        return our_carry(states, *variant)

    xs, mask = found["xs"], None
    if "lengths" in found:
        mask = np.arange(len(xs))[:, None] < found["lengths"]
    layers_in = by_layer(partial(our_params, found.__getitem__), *variant)
    dlayers = by_layer(partial(our_gradients, lambda name: found[f"d{name}"]), *variant)
    results, gradients = ours(*variant)(
        (layers_in, carry("state"), xs), mask, (carry("weight_state"), found["weight_ys"])
    )
    assert_near(results, (carry("final"), found["ys"]), TOLERANCE)
    assert_near(gradients, (dlayers, carry("dstate"), found["dxs"]), TOLERANCE)


@pytest.mark.parametrize(
    ("cell", "layers", "bidirectional", "shape"),
    [(c, n, b, SHAPES[0]) for c in MODULES for n in (1, 2) for b in (False, True)]
    + [(c, 1, False, SHAPES[1]) for c in MODULES],
)
def test_values_and_gradients_are_pytorchs(
    peer: Peer, cell: str, layers: int, bidirectional: bool, shape: tuple[int, ...]
) -> None:
    variant = (cell, layers, bidirectional)
    compare(*variant, peer(str((*variant, shape)), lambda: theirs(*variant, shape, 0)))


@pytest.mark.parametrize("cell", MODULES)
def test_masked_sequences_are_pytorchs_packed_ones(peer: Peer, cell: str) -> None:
    for number, lengths in enumerate(([7, 1, 4], [3, 6, 2], [5, 5, 5])):
        packed = peer(
            f"{cell} {lengths}",
            lambda n=number, ls=lengths: theirs(cell, 2, True, SHAPES[0], n, np.array(ls)),
        )
        compare(cell, 2, True, packed)


@pytest.mark.slow
@variants
@settings(max_examples=5)
@given(seed=seeds, shape=st.sampled_from(SHAPES))
def test_any_values_and_gradients_are_pytorchs(
    cell: str, layers: int, bidirectional: bool, shape: tuple[int, ...], seed: int
) -> None:
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    variant = (cell, layers, bidirectional)
    compare(*variant, theirs(*variant, shape, seed))


@pytest.mark.slow
@pytest.mark.parametrize("cell", MODULES)
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(1, 7), min_size=3, max_size=3), seed=seeds)
def test_any_masked_sequences_are_pytorchs_packed_ones(
    cell: str, lengths: list[int], seed: int
) -> None:
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    compare(cell, 2, True, theirs(cell, 2, True, SHAPES[0], seed, np.array(lengths)))


@pytest.mark.slow
@pytest.mark.beyond_ci
@variants
@pytest.mark.parametrize("shape", [(12, 2, 3, 8), (40, 5, 16, 32), (3, 17, 9, 4)])
@settings(max_examples=5)
@given(seed=seeds)
def test_values_and_gradients_are_pytorchs_in_more_shapes(
    cell: str, layers: int, bidirectional: bool, shape: tuple[int, ...], seed: int
) -> None:
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    variant = (cell, layers, bidirectional)
    compare(*variant, theirs(*variant, shape, seed))
    lengths = np.random.default_rng(seed).integers(1, shape[0] + 1, shape[1])
    compare(*variant, theirs(*variant, shape, seed, lengths))

"""Stacks, inputs and comparisons that the tests of weights and modules share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import cells
from lstm_jax.stack import Directions, StackConfig, run_stack

FORMS = ("rnn", "lstm", "gru_after", "gru_before")
RESET_AFTER = FORMS[:3]
stacks = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (2, False), (1, True), (3, True)]
)


def config_of(form: str, layers: int, bidirectional: bool, hidden: int) -> StackConfig:
    cell, _, reset = form.partition("_")
    return StackConfig(
        cell=cell,
        layers=layers,
        hidden_size=hidden,
        bidirectional=bidirectional,
        gru_reset=reset or "after",
    )


def draw_layers(
    form: str,
    layers: int,
    bidirectional: bool,
    input_size: int,
    hidden: int,
    seed: int = 0,
    dtype: Any = np.float32,
) -> tuple[Any, ...]:
    """Normal weights; every bias is drawn, none is zero."""
    rng = np.random.default_rng(seed)

    def direction(size: int) -> Any:
        cell = cells.cell_named(form.partition("_")[0])
        width = cell.gates * hidden
        shapes: dict[str, Any] = {"w_x": (size, width), "w_h": (hidden, width), "b": (width,)}
        if cell.name == "gru":
            shapes["b_hn"] = (hidden,) if form == "gru_after" else None
        return cell.params(
            **{
                name: None
                if shape is None
                else jnp.asarray(0.5 * rng.standard_normal(shape), dtype)
                for name, shape in shapes.items()
            }
        )

    drawn: list[Any] = []
    for index in range(layers):
        size = input_size if index == 0 else hidden * (2 if bidirectional else 1)
        drawn.append(
            Directions(direction(size), direction(size)) if bidirectional else direction(size)
        )
    return tuple(drawn)


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def outputs(config: StackConfig, layers: tuple[Any, ...], xs: Any) -> np.ndarray:
    """The stack's outputs of `[T, B, D]`; compiled, for a loop of dispatches takes longer."""
    return np.asarray(
        jax.jit(lambda layers, xs: run_stack(config, layers, None, xs)[1])(layers, xs)
    )


def assert_same_bits(found: Any, expected: Any) -> None:
    found_leaves, structure = jax.tree.flatten_with_path(found)
    expected_leaves, expected_structure = jax.tree.flatten(expected)
    assert structure == expected_structure
    for (path, leaf), reference in zip(found_leaves, expected_leaves, strict=True):
        assert leaf.dtype == reference.dtype
        np.testing.assert_array_equal(leaf, reference, err_msg=jax.tree_util.keystr(path))


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    found_leaves, structure = jax.tree.flatten_with_path(found)
    expected_leaves, expected_structure = jax.tree.flatten(expected)
    assert structure == expected_structure
    for (path, leaf), reference in zip(found_leaves, expected_leaves, strict=True):
        np.testing.assert_allclose(
            leaf, reference, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )

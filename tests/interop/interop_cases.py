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


def numbered(tree: Any) -> dict[str, np.ndarray]:
    """A tree's leaves, by their number as a word."""
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}


def by_path(tree: Any, *around: str) -> dict[str, np.ndarray]:
    """Leaves of dicts in dicts, by their names joined by slashes."""
    if not isinstance(tree, dict):
        return {"/".join(around): np.asarray(tree)}
    return {k: v for name in tree for k, v in by_path(tree[name], *around, name).items()}


def from_paths(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `by_path`."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *around, last = path.split("/")
        inner = tree
        for name in around:
            inner = inner.setdefault(name, {})
        inner[last] = array
    return tree


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

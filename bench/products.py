"""What matrix products allow: no step is faster than its own products, each alone and at its best.

The products of a training step are the input's (forward, and two backward), the recurrent ones
(forward and backward at each time, and the weight gradient after them) and the output's. What is
looked up is no product, nor is its gradient. Each is timed at its own shape and dtype, in the
fastest of the forms it can have: operands stored as they are or transposed, and the product or its
transpose. The recurrent ones run one after the other in one jitted loop, their operands in the
cache from time to time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench import report
from bench.measure import Timing, seconds
from bench.shapes import AnySystem, Classification, DType, LayerShape
from lstm_jax.cells import CellName, cell_named
from lstm_jax.precision import products

_TRIES = 3


class Product(NamedTuple):
    """`[rows, inner] @ [inner, columns]`, so many times one after the other."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def name(self) -> str:
        """How it is printed."""
        times = f"{self.times} x " if self.times > 1 else ""
        return f"{times}[{self.rows}, {self.inner}] @ [{self.inner}, {self.columns}]"


def products_of_system(system: AnySystem) -> Counter[Product]:
    """How often each product is in one training step."""
    times, batch = system.sequence_length, system.batch_size
    cell: CellName = "lstm" if isinstance(system, Classification) else system.cell
    gates = cell_named(cell).gates * system.hidden_size
    tokens = times * batch
    found: Counter[Product] = Counter()
    for index in range(system.layers):
        found += _recurrent(times, batch, system.hidden_size, gates)
        if index > 0:
            found += _affine(tokens, system.hidden_size, gates)
        elif system.embedding_size is not None:
            found += _affine(_embedded_rows(system), system.embedding_size, gates)
    if isinstance(system, Classification):
        found += _affine(batch, system.hidden_size, system.dense_size)
        return found + _affine(batch, system.dense_size, 1)
    return found + _affine(tokens, system.hidden_size, system.vocabulary_size)


def products_of_layer(shape: LayerShape) -> Counter[Product]:
    """How often each product is in a layer's forward and backward pass."""
    gates = cell_named(shape.cell).gates * shape.hidden_size
    return _recurrent(shape.times, shape.batch, shape.hidden_size, gates) + _affine(
        shape.times * shape.batch, shape.input_size, gates
    )


def _embedded_rows(system: AnySystem) -> int:
    """Rows of the first layer's input product: each place, or each word of the vocabulary.

    Dropout of the inputs, and words that are dropped, leave only the places.
    """
    places = system.sequence_length * system.batch_size
    if isinstance(system, Classification) or system.dropout_place == "inputs":
        return places
    return min(places, system.vocabulary_size)


def _affine(rows: int, inputs: int, outputs: int) -> Counter[Product]:
    """Forward, and the gradients of the input and of the weights."""
    return Counter(
        [
            Product(rows, inputs, outputs),
            Product(rows, outputs, inputs),
            Product(inputs, rows, outputs),
        ]
    )


def _recurrent(times: int, batch: int, hidden_size: int, gates: int) -> Counter[Product]:
    return Counter(
        [
            Product(batch, hidden_size, gates, times),
            Product(batch, gates, hidden_size, times),
            Product(hidden_size, times * batch, gates),
        ]
    )


class Floor:
    """The least time of some products: make it, time its `calls` beside others, and add up.

    Args:
        needed: how often each is needed.
        dtype: of their operands; sums are float32.

    Attributes:
        calls: one for each distinct product, in its fastest form.
    """

    def __init__(self, needed: Mapping[Product, int], dtype: DType) -> None:
        self._needed = dict(needed)
        self.calls = {
            f"products: {product.name}": _fastest(_forms(product, dtype)) for product in needed
        }

    def milliseconds(self, timings: Mapping[str, Timing]) -> float:
        """The sum of their medians."""
        return sum(self._each(timings).values())

    def shown(self, timings: Mapping[str, Timing]) -> str:
        """The sum and its terms, the longest first."""
        each = sorted(self._each(timings).items(), key=lambda item: -item[1])
        terms = "; ".join(
            f"{self._needed[product]} of {product.name} {spent:.3g}" for product, spent in each
        )
        return f"{self.milliseconds(timings):.4g} ms: {terms}"

    def _each(self, timings: Mapping[str, Timing]) -> dict[Product, float]:
        return {
            product: count * timings[f"products: {product.name}"].median_ms
            for product, count in self._needed.items()
        }


def with_limit(row: report.Row, floor: Floor, timings: Mapping[str, Timing]) -> report.Row:
    """A row of ours with its share of what the products allow; a peer's as it is."""
    if not row.is_ours:
        return row
    return dataclasses.replace(
        row,
        limit_fraction=floor.milliseconds(timings) / row.median_ms,
        settings={**row.settings, "limit": floor.shown(timings)},
    )


def _fastest(forms: Mapping[str, Callable[[], object]]) -> Callable[[], object]:
    took = {}
    for name, run in forms.items():
        run()
        took[name] = min(seconds(run) for _ in range(_TRIES))
    return forms[min(took, key=took.__getitem__)]


_SPECS = {
    "x @ w": "mk,kn->mn",
    "x @ w, w.T stored": "mk,nk->mn",
    "x @ w, x.T stored": "km,kn->mn",
    "(w.T @ x.T).T": "nk,km->nm",
}


def _forms(product: Product, dtype: DType) -> dict[str, Callable[[], object]]:
    sizes = {"m": product.rows, "k": product.inner, "n": product.columns}
    operand = products(dtype, jnp.float32).operand
    keys = random.split(random.key(0))

    def form(spec: str) -> Callable[[], object]:
        left, right = (
            # So scaled, what comes out of a product is as large as what goes in.
            (random.normal(key, tuple(sizes[axis] for axis in axes)) / product.inner**0.5).astype(
                operand
            )
            for key, axes in zip(keys, spec.partition("->")[0].split(","), strict=True)
        )
        return lambda: jax.block_until_ready(_repeat(spec, dtype, product.times, left, right))

    return {name: form(spec) for name, spec in _SPECS.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _repeat(spec: str, dtype: DType, times: int, left: Array, right: Array) -> Array:
    policy = products(dtype, jnp.float32)
    if times == 1:
        return policy.einsum(spec, left, right)

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # One number of the last result goes into the operand: so no product can be left out.
        left, last = state
        left = left.at[0, 0].set(last[0, 0].astype(left.dtype))
        return left, policy.einsum(spec, left, right)

    shape = jax.eval_shape(partial(policy.einsum, spec), left, right)
    start = (left, jnp.zeros(shape.shape, shape.dtype))
    result: Array = lax.fori_loop(0, times, step, start)[1]
    return result

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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench.report import Row
from bench.shapes import AnySystem, Classification, DType, LayerShape
from bench.timing import seconds
from bench.workers import Built
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
        found += _recurrent(cell, times, batch, system.hidden_size)
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
    affine = _affine(shape.times * shape.batch, shape.input_size, gates)
    return affine + _recurrent(shape.cell, shape.times, shape.batch, shape.hidden_size)


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
    sizes = ((rows, inputs, outputs), (rows, outputs, inputs), (inputs, rows, outputs))
    return Counter(Product(*each) for each in sizes)


def _recurrent(name: CellName, times: int, batch: int, hidden_size: int) -> Counter[Product]:
    cell = cell_named(name)
    if cell.unit_step is not None:
        return Counter()
    gates = cell.gates * hidden_size
    return Counter(
        [
            Product(batch, hidden_size, gates, times),
            Product(batch, gates, hidden_size, times),
            Product(hidden_size, times * batch, gates),
        ]
    )


class Floor(NamedTuple):
    """The least time of some products: how often each is needed, and its median by its name."""

    needed: Mapping[Product, int]
    median_ms: Mapping[str, float]

    @property
    def milliseconds(self) -> float:
        """The sum."""
        return sum(count * self.median_ms[each.name] for each, count in self.needed.items())

    def __str__(self) -> str:
        each = {
            f"{count} of {product.name}": count * self.median_ms[product.name]
            for product, count in self.needed.items()
        }
        longest_first = sorted(each.items(), key=lambda item: -item[1])
        terms = "; ".join(f"{name} {spent:.3g}" for name, spent in longest_first)
        return f"{self.milliseconds:.4g} ms: {terms}"

    def marked(self, row: Row) -> Row:
        """A row of ours with its share of what the products allow; a peer's as it is."""
        if not row.is_ours:
            return row
        return dataclasses.replace(
            row,
            limit_fraction=self.milliseconds / row.median_ms,
            settings={**row.settings, "limit": str(self)},
        )


def build_products(needed: Sequence[Product], dtype: DType) -> Built:
    """A call for each product by its name, in its fastest form; sums are float32."""
    return Built({product.name: _fastest(_forms(product, dtype)) for product in needed}, {})


def _fastest(forms: Mapping[str, Callable[[], object]]) -> Callable[[], object]:
    took = {}
    for name, run in forms.items():
        run()
        took[name] = min(seconds(run) for _ in range(_TRIES))
    return forms[min(took, key=took.__getitem__)]


SPECS = {
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
        return lambda: jax.block_until_ready(repeat(spec, dtype, product.times, left, right))

    return {name: form(spec) for name, spec in SPECS.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def repeat(spec: str, dtype: DType, times: int, left: Array, right: Array) -> Array:
    """The product, so many times one after the other."""
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

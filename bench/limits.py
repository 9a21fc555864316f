"""The hardware's limits, measured here: of training by matrix products, of decoding by memory.

No step is faster than its products, each alone and at its best. A training step has the products of
the input (one forward, two backward), the recurrent ones (one forward and one backward per time
step, and the weight gradient after them), and those of the output. Look-ups and their gradients are
not products. Each product is timed at its own shape and dtype, in the fastest of its forms:
operands stored as they are or transposed, and the product or its transpose. Recurrent products run
one after the other in a jitted loop, with operands that stay in cache between time steps.

A decoding step at batch 1 must read every weight once. As weights may fit in a cache, its limit is
the time of passes over an array of exactly their size, in the fastest of a few ways.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench.shapes import AnySystem, Classification, DType, LayerShape, StoredDType, System
from bench.timing import seconds
from bench.workers import Built
from lstm_jax.cells import CellName, cell_named
from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModelParams
from lstm_jax.precision import products
from lstm_jax.sampling import with_weights

_TRIES = 3
_ROWS = 512


class Product(NamedTuple):
    """`[rows, inner] @ [inner, columns]`, `times` times in sequence."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.times

    @property
    def name(self) -> str:
        times = f"{self.times} x " if self.times > 1 else ""
        return f"{times}[{self.rows}, {self.inner}] @ [{self.inner}, {self.columns}]"


def products_of_system(system: AnySystem) -> Counter[Product]:
    """How often each product occurs in one training step."""
    times, batch = system.sequence_length, system.batch_size
    gates, tokens = cell_named(system.cell).gates * system.hidden_size, times * batch
    found: Counter[Product] = Counter()
    for index in range(system.layers):
        found += _recurrent(system.cell, times, batch, system.hidden_size)
        if index > 0:
            found += _affine(tokens, system.hidden_size, gates)
        elif system.embedding_size is not None:
            # Every position, or every word; dropout of inputs or words leaves only the positions.
            by_place = isinstance(system, Classification) or system.dropout_place == "inputs"
            rows = tokens if by_place else min(tokens, system.vocabulary_size)
            found += _affine(rows, system.embedding_size, gates)
    if isinstance(system, Classification):
        found += _affine(batch, system.hidden_size, system.dense_size)
        return found + _affine(batch, system.dense_size, 1)
    return found + _affine(tokens, system.hidden_size, system.vocabulary_size)


def products_of_layer(shape: LayerShape) -> Counter[Product]:
    gates = cell_named(shape.cell).gates * shape.hidden_size
    affine = _affine(shape.times * shape.batch, shape.input_size, gates)
    return affine + _recurrent(shape.cell, shape.times, shape.batch, shape.hidden_size)


def _affine(rows: int, inputs: int, outputs: int) -> Counter[Product]:
    """The forward product, and the gradients of input and weights."""
    sizes = ((rows, inputs, outputs), (rows, outputs, inputs), (inputs, rows, outputs))
    return Counter(Product(*each) for each in sizes)


def _recurrent(name: CellName, times: int, batch: int, hidden_size: int) -> Counter[Product]:
    cell = cell_named(name)
    if cell.unit_step is not None:
        return Counter()
    gates = cell.gates * hidden_size
    forward = Product(batch, hidden_size, gates, times)
    backward = Product(batch, gates, hidden_size, times)
    return Counter([forward, backward, Product(hidden_size, times * batch, gates)])


def floor(needed: Mapping[Product, int], median_ms: Mapping[str, float]) -> tuple[float, str]:
    """Least total milliseconds of the products, and a description of each one's part."""
    spent = {f"{n} of {each.name}": n * median_ms[each.name] for each, n in needed.items()}
    longest_first = sorted(spent.items(), key=lambda item: -item[1])
    total = sum(spent.values())
    return total, f"{total:.4g} ms: " + "; ".join(f"{k} {v:.3g}" for k, v in longest_first)


def build_products(needed: Sequence[Product], dtype: DType) -> Built:
    """Make a call for each product, by name, in its fastest form; sums are float32."""
    return Built({product.name: _fastest(_forms(product, dtype)) for product in needed}, {})


def _fastest(forms: Iterable[Callable[[], object]]) -> Callable[[], object]:
    def least(run: Callable[[], object]) -> float:
        run()  # compiles
        return min(seconds(run) for _ in range(_TRIES))

    return min(forms, key=least)


SPECS = ("mk,kn->mn", "mk,nk->mn", "km,kn->mn", "nk,km->nm")
"""x @ w; the same with w.T stored, and with x.T stored; (w.T @ x.T).T."""


def _forms(product: Product, dtype: DType) -> list[Callable[[], object]]:
    sizes = {"m": product.rows, "k": product.inner, "n": product.columns}
    operand = products(dtype, jnp.float32).operand

    def drawn(key: Array, axes: str) -> Array:
        # Scaled so that results are as large as operands.
        shape = tuple(sizes[axis] for axis in axes)
        return jnp.asarray(random.normal(key, shape) / product.inner**0.5, operand)

    def form(spec: str) -> Callable[[], object]:
        both = map(drawn, random.split(random.key(0)), spec.partition("->")[0].split(","))
        call = partial(repeat, spec, dtype, product.times, *both)
        return lambda: jax.block_until_ready(call())

    return list(map(form, SPECS))


@partial(jax.jit, static_argnums=(0, 1, 2))
def repeat(spec: str, dtype: DType, times: int, left: Array, right: Array) -> Array:
    policy = products(dtype, jnp.float32)
    if times == 1:
        return policy.einsum(spec, left, right)

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # One number of the last result enters the operand, so that no product is optimised away.
        left, last = state
        left = left.at[0, 0].set(last[0, 0].astype(left.dtype))
        return left, policy.einsum(spec, left, right)

    shape = jax.eval_shape(partial(policy.einsum, spec), left, right)
    start = (left, jnp.zeros(shape.shape, shape.dtype))
    return lax.fori_loop(0, times, step, start)[1]


def bytes_a_step(params: LanguageModelParams) -> int:
    """Bytes that a step for one text must read: all weights, but only one row of look-up tables.

    An embedding that is also the output layer's weights is read whole.
    """
    total = sum(int(leaf.nbytes) for leaf in jax.tree.leaves(params))
    if not isinstance(params.output, OutputParams):
        return total
    table = params.layers[0].w_x if params.embedding is None else params.embedding
    return int(total - table.nbytes + table.nbytes // len(table))


def build_reading(system: System, dtypes: Sequence[StoredDType], passes: int) -> Built:
    """Read as many bytes as a step must, with weights of each dtype, by the name of the way."""
    calls: dict[str, Callable[[], object]] = {}
    settings: dict[str, str] = {}
    for dtype in dtypes:
        _, params = with_weights(system.model(dtype), system.initial_params(), dtype)
        size = bytes_a_step(params)
        settings[dtype] = str(size)
        calls |= {f"{name}, {dtype}": run for name, run in readers(size, passes).items()}
    return Built(calls, settings)


def readers(size: int, passes: int) -> dict[str, Callable[[], Array]]:
    """Ways to read a matrix of about `size` bytes, each pass depending on the previous one."""
    numbers = size // 4
    rows = min(_ROWS, numbers)
    weights = random.normal(random.key(0), (rows, max(1, round(numbers / rows))))
    return {
        "weights @ x": lambda: jax.block_until_ready(_read(weights, passes, 1)),
        "x @ weights": lambda: jax.block_until_ready(_read(weights, passes, 0)),
    }


@partial(jax.jit, static_argnums=(1, 2))
def _read(weights_RC: Array, passes: int, axis: int) -> Array:
    start = jnp.full(weights_RC.shape[axis], 0.1)

    def once(_: int, x: Array) -> Array:
        return start * jnp.tanh((weights_RC @ x if axis else x @ weights_RC).max())

    return lax.fori_loop(0, passes, once, start)

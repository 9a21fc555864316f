"""User-defined cells, declared by what a step does after the input product."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from lstm_jax.cells.base import Cell, Dot, declared, rest_of_step, unit_params, zero_carry
from lstm_jax.cells.options import take_step
from lstm_jax.checks import require_count
from lstm_jax.precision import ComputeDtype, products


def declare_cell(
    name: str,
    gates: int,
    params: type[Any],
    carry: type[Any],
    init: Callable[..., Any],
    step: Callable[[Any, Any, Array, Dot], Any],
    *,
    inputs: Callable[[Any, Array], Array] | None = None,
) -> Cell:
    """Declare a cell of your own.

    `layer(params, carry, xs)` recognises it by the type of its parameters; `StackConfig(cell=...)`
    and `LanguageModelConfig(cell=...)` accept it. It supports masks, resets, both directions, token
    ids, `remat`, `compute_dtype` and single steps as every cell does. The input product is computed
    for all time steps at once; the rest is a `lax.scan` that JAX differentiates in reverse mode.
    Forward mode needs `backend="reference"`, as for every cell.

    Args:
        name: used in errors and in names of compiled programs.
        gates: number of blocks of size H in `w_x` and `b`.
        params: your own NamedTuple type, with at least `w_x [D, G]` and `b [G]`, G = gates * H.
        carry: a NamedTuple type of arrays `[B, H]`, the first of which is the output `h`, such as
            `LSTMCarry` or `GRUCarry`.
        init: (key, input_size, hidden_size, *, initialisation, dtype) -> params, like `init_lstm`.
        step: (params, carry, gates, dot) -> carry. `gates` is `x w_x + b`, `[B, G]`. Use `dot` for
            products with weights, `dot(carry.h, params.w_h)`; it follows `compute_dtype`.
        inputs: (params, `x w_x`) -> array to which `b` is added, such as a normalisation of it;
            None adds `b` to `x w_x`. In the params of both functions `w_x` and `b` are None.

    Returns:
        The cell. Its `step` takes one step, (params, carry, x) -> (carry, h).

    Raises:
        TypeError: `params` belongs to another cell, or is not what `init` returns; or `name` or
            `gates` is of another type.
        ValueError: shapes that do not fit; they are checked without computing anything.

    Examples:
        >>> from typing import Any, NamedTuple
        >>> class LeakyParams(NamedTuple):
        ...     w_x: Any
        ...     w_h: Any
        ...     b: Any
        >>> leaky = lstm_jax.declare_cell(
        ...     "leaky", 1, LeakyParams, lstm_jax.GRUCarry,
        ...     init=lambda *sizes, **options: LeakyParams(*lstm_jax.init_rnn(*sizes, **options)),
        ...     step=lambda params, carry, gates, dot: lstm_jax.GRUCarry(
        ...         0.9 * carry.h + 0.1 * jnp.tanh(gates + dot(carry.h, params.w_h))
        ...     ),
        ... )
        >>> config = lstm_jax.StackConfig(cell=leaky, layers=2, hidden_size=4)
        >>> layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> lstm_jax.run_stack(config, layers, None, jnp.ones((10, 2, 3)))[1].shape
        (10, 2, 4)
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; give a text, as 'lstm' is for the LSTM")
    if not name:
        raise ValueError("name is empty; give the cell a name of its own")
    require_count("gates", gates)
    for what, given in (("params", params), ("carry", carry)):
        if not (isinstance(given, type) and hasattr(given, "_fields")):
            raise TypeError(f"{what} is {given!r}; give a NamedTuple type")
    if carry._fields[:1] != ("h",):
        raise ValueError(
            f"the carry has the fields {carry._fields}; its first must be h, the output"
        )
    for what, function in (("init", init), ("step", step)):
        if not callable(function):
            raise TypeError(f"{what} is {function!r}; give a function")
    if isinstance(other := getattr(params, "cell", None), Cell):
        raise TypeError(
            f"params is {params.__name__}, which belongs to the cell {other.name!r}; give each "
            "cell a parameter type of its own"
        )

    def one_step(
        params: Any, carry: Any, x: Array, *, compute_dtype: ComputeDtype | None = None
    ) -> tuple[Any, Array]:
        return take_step(cell, params, carry, x, compute_dtype)

    cell = Cell(name, gates, one_step, init, params, carry, gates_step=step, inputs=inputs)
    try:
        _check(declared(cell))
    except Exception:
        del params.cell
        raise
    return cell


def _check(cell: Cell, input_size: int = 2, hidden_size: int = 3) -> None:
    """Raise TypeError or ValueError if the parts of a cell do not fit together."""
    draw = partial(cell.init, initialisation="pytorch", dtype=jnp.float32)
    params = jax.eval_shape(lambda: draw(random.key(0), input_size, hidden_size))
    if not isinstance(params, cell.params):
        raise TypeError(f"init gives {type(params).__name__}; expected {cell.params.__name__}")
    width = cell.gates * hidden_size
    for field, shape in (("w_x", (input_size, width)), ("b", (width,))):
        found = getattr(getattr(params, field, None), "shape", None)
        if found != shape:
            raise ValueError(
                f"{field} that init gives has shape {found}; expected {shape} of an input size of "
                f"{input_size}, a hidden size of {hidden_size} and {cell.gates} gates"
            )
    policy = products(None, jnp.float32)
    own = partial(unit_params, policy=policy)
    if (inputs := cell.inputs) is not None:
        rows = jax.ShapeDtypeStruct((2, width), jnp.float32)
        found = jax.eval_shape(lambda params, rows: inputs(own(params), rows), params, rows)
        if (given := getattr(found, "shape", None)) != rows.shape:
            raise ValueError(
                f"inputs gives shape {given}; expected {rows.shape}, that of what it is given"
            )
    carry = jax.eval_shape(lambda: zero_carry(params, 1))
    gates = jax.ShapeDtypeStruct((1, width), jnp.float32)
    rest = rest_of_step(cell, policy.dot)
    try:
        new = jax.eval_shape(lambda params, *rows: rest(own(params), *rows), params, carry, gates)
    except (AttributeError, TypeError) as error:
        if "NoneType" in str(error):
            error.add_note("in step, w_x and b are None: the gates contain them already")
        raise
    if not isinstance(new, cell.carry):
        found = "an array" if isinstance(new, jax.ShapeDtypeStruct) else type(new).__name__
        raise TypeError(f"step gives {found}; expected {cell.carry.__name__}")
    if str(new) != str(carry):
        raise ValueError(f"step gives the carry {new}; expected it as it was, {carry}")

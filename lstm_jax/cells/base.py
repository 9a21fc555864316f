"""What a cell declares, and what all cells have in common: input, carry, checks.

Shapes: B batch, D input size, H hidden size, G gates side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from lstm_jax.checks import check_input, require_array
from lstm_jax.precision import ComputeDtype, Products, cast_tree, products


class Cell(NamedTuple):
    """What a layer has to know of a cell. Its parameters have it as their attribute `cell`.

    All parameters have `w_x [D, G]` and `b [G]`, and all carries have `h`, the output.

    Attributes:
        name: as settings have it; functions have `_` where it has `-`.
        gates: how many are side by side.
        step: (params, carry, x) -> (carry, h).
        init: draws the parameters.
        params: their type.
        carry: its type.
        unit_step: of a cell whose units act each on its own: (params, carry, the input's share of
            the gates and the bias `[..., G]`) -> carry. A layer runs it for all times at once.
        linear: whether `unit_step` is linear in the carry, with factors between 0 and 1.
    """

    name: str
    gates: int
    step: Callable[..., tuple[Any, Array]]
    init: Callable[..., Any]
    params: type[Any]
    carry: type[Any]
    unit_step: Callable[[Any, Any, Array], Any] | None = None
    linear: bool = False

    @property
    def function(self) -> str:
        """The name of its layer's function."""
        return self.name.replace("-", "_")


def declared(cell: Cell) -> Cell:
    """The cell, which its parameters then have as their attribute."""
    cell.params.cell = cell
    return cell


def cell_of(params: Any) -> Cell:
    """The cell that these parameters belong to; raises TypeError where there is none."""
    cell = getattr(params, "cell", None)
    if isinstance(cell, Cell):
        return cell
    raise TypeError(
        f"expected the parameters of a cell, such as LSTMParams, got {type(params).__name__}"
    )


def look_up(table: Array, ids: Array) -> Array:
    """The table's rows at these ids; an id below or above the table is read as the nearest row."""
    rows: Array = table.at[ids].get(mode="clip", wrap_negative_indices=False)
    return rows


def input_gates(policy: Products, params: Any, x: Array) -> Array:
    """The input's share of one step's gates, and the bias: `[B, G]`."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        rows_BG = look_up(params.w_x, x)
        gates_BG: Array = (rows_BG + params.b[None]).astype(policy.accumulate)
    else:
        gates_BG = policy.dot(x, params.w_x) + params.b[None]
    return gates_BG


def step_units(
    cell: Cell, params: Any, carry: Any, x: Array, compute_dtype: ComputeDtype | None
) -> tuple[Any, Array]:
    """One step of a cell by its `unit_step`."""
    check_step(cell, params, carry, x)
    check_shapes(params)
    policy = products(compute_dtype, params.b.dtype)
    gates_BG = input_gates(policy, params, x)
    carry = cell.unit_step(unit_params(params, policy), carry, gates_BG)  # type: ignore[misc]
    return carry, carry.h


def unit_params(params: Any, policy: Products) -> Any:
    """What `unit_step` sees of the parameters: all but those whose share is in the gates."""
    return cast_tree(params._replace(w_x=None, b=None), policy.accumulate)


def require_cell(params: Any, cell: Cell, suffix: str = "") -> None:
    """Raises TypeError where the parameters are not what the function of this cell takes."""
    found = cell_of(params)
    if found is not cell:
        raise TypeError(
            f"{cell.function}{suffix} takes {cell.params.__name__}, and these are "
            f"{found.params.__name__}; use {found.function}{suffix}"
        )


def check_step(cell: Cell, params: Any, carry: Any, x: Array) -> None:
    """Raises TypeError or ValueError where a step's arguments do not fit each other."""
    require_cell(params, cell, "_step")
    check_input("x", x, "B", params.w_x.shape[0])
    check_carry(params, carry, x.shape[0])


def check_shapes(params: Any) -> None:
    """Raises ValueError where a parameter is not as its cell draws it, and might be broadcast."""
    hidden_size = params.b.shape[0] // cell_of(params).gates
    _require_shapes("", params, _shapes(cell_of(params), params.w_x.shape[0], hidden_size))


@cache
def _shapes(cell: Cell, input_size: int, hidden_size: int) -> Iterable[tuple[int, ...]]:
    """Of the parameters that a cell draws."""
    draw = partial(cell.init, input_size=input_size, hidden_size=hidden_size)
    drawn = jax.eval_shape(draw, jax.eval_shape(lambda: random.key(0)))
    return tuple(array.shape for array in drawn)


def check_carry(params: Any, carry: Any, batch_size: int) -> None:
    """Raises TypeError or ValueError where a carry does not fit the parameters."""
    expected = cell_of(params).carry
    if not isinstance(carry, expected):
        raise ValueError(
            f"carry is {type(carry).__name__}; {type(params).__name__} need {expected.__name__}"
        )
    _require_shapes("carry.", carry, _carry_shapes(params, batch_size))


def _require_shapes(prefix: str, arrays: Any, shapes: Iterable[tuple[int, ...]]) -> None:
    for name, array, shape in zip(arrays._fields, arrays, shapes, strict=True):
        require_array(prefix + name, array)
        if array.shape != shape:
            raise ValueError(f"{prefix}{name} has shape {array.shape}; expected {shape}")


def zero_carry(params: Any, batch_size: int) -> Any:
    """The carry of zeros that starts a sequence, in the accumulator's dtype; takes no key.

    Examples:
        >>> lstm_jax.zero_carry(lstm_jax.init_gru(jax.random.key(0), 3, 4), batch_size=2).h.shape
        (2, 4)
    """
    dtype = jnp.promote_types(params.b.dtype, jnp.float32)
    # A buffer for each: one shared by h and c could not be donated.
    zeros = [jnp.zeros(shape, dtype) for shape in _carry_shapes(params, batch_size)]
    return cell_of(params).carry(*zeros)


def _carry_shapes(params: Any, batch_size: int) -> Iterable[tuple[int, int]]:
    """Of h, as many units as `w_h` has rows (fewer where it is projected), and of c, if any."""
    cell = cell_of(params)
    hidden_size = params.b.shape[0] // cell.gates
    first = params.w_h.shape[0] if "w_h" in params._fields else hidden_size
    others = (hidden_size,) * (len(cell.carry._fields) - 1)
    return [(batch_size, size) for size in (first, *others)]

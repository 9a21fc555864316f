"""The declaration of a cell, and what all cells share: input, carry and checks.

Shapes: B batch, D input size, H hidden size, G size of all gates together.
"""

from collections.abc import Callable, Collection, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

from lstm_jax.checks import check_input, require_array
from lstm_jax.precision import Products, cast_tree

Dot = Callable[[Array, Array], Array]
"""A product `h [B, K] @ w [K, N]` in the dtypes that were asked for."""


class Cell(NamedTuple):
    """Description of a cell, available as the attribute `cell` of its parameters.

    Parameters have at least `w_x [D, G]` and `b [G]`, None for no biases, and carries at least `h`,
    the output.

    Attributes:
        name: name in settings; function names replace `-` with `_`.
        gates: number of gates.
        step: (params, carry, x) -> (carry, h).
        init: draws the parameters.
        params: type of the parameters.
        carry: type of the carry.
        unit_step: for a cell with independent units, (params, carry, input part of the gates plus
            bias `[..., G]`) -> carry; layers apply it to all time steps at once.
        linear: `unit_step` is linear in the carry, with factors between 0 and 1.
        gates_step: for a cell without a kernel, (params, carry, gates `[B, G]`, dot) -> carry; see
            `declare_cell`.
        inputs: (params, `x w_x [B, G]`) -> what the bias is added to; None adds it to `x w_x`.
        options_step: for a cell with options, (params, carry, input part of the gates plus bias
            `[B, G]`, product, **options) -> carry; its keywords are the cell's options.

    Examples:
        >>> lstm_jax.GRUParams.cell.gates
        3
    """

    name: str
    gates: int
    step: Callable[..., tuple[Any, Array]]
    init: Callable[..., Any]
    params: type[Any]
    carry: type[Any]
    unit_step: Callable[[Any, Any, Array], Any] | None = None
    linear: bool = False
    gates_step: Callable[[Any, Any, Array, Dot], Any] | None = None
    inputs: Callable[[Any, Array], Array] | None = None
    options_step: Callable[..., Any] | None = None

    @property
    def has_kernel(self) -> bool:
        """Whether layers run it with a backward pass of their own."""
        return self.unit_step is None and self.gates_step is None

    @property
    def function(self) -> str:
        """Name of the layer function."""
        return self.name.replace("-", "_")


def declared(cell: Cell) -> Cell:
    """Attach the cell to its parameter type, and return it."""
    cell.params.cell = cell
    return cell


def cell_of(params: Any) -> Cell:
    """The cell of these parameters; raises TypeError if there is none."""
    cell = getattr(params, "cell", None)
    if isinstance(cell, Cell):
        return cell
    raise TypeError(
        f"expected the parameters of a cell, such as LSTMParams, got {type(params).__name__}"
    )


def look_up(table: Array, ids: Array) -> Array:
    """Rows of the table at these ids; ids out of range are clipped."""
    return table.at[ids].get(mode="clip", wrap_negative_indices=False)


def outnumber(ids: Array, table: Array) -> bool:
    """Whether there are more ids than rows, so that what changes a row pays in the table.

    A symbolic number of ids (exported programs) counts as few.
    """
    return isinstance(ids.size, int) and ids.size > len(table)


def input_gates(policy: Products, params: Any, x: Array) -> Array:
    """Input part of one step's gates plus the bias: `[B, G]`."""
    is_dense = not jnp.issubdtype(x.dtype, jnp.integer)
    rows_BG = policy.dot(x, params.w_x) if is_dense else look_up(params.w_x, x)
    if (inputs := cell_of(params).inputs) is None:
        gates_BG: Array = (rows_BG + params.b[None]).astype(policy.accumulate)
    else:
        gates_BG = inputs(unit_params(params, policy), rows_BG.astype(policy.accumulate))
        gates_BG += params.b[None].astype(policy.accumulate)
    return gates_BG


def with_biases(params: Any) -> Any:
    """The parameters with constant zeros, which are never trained, for missing biases."""
    if params.b is not None:
        return params
    width = params.w_x.shape[1]
    zeros = {"b": jnp.zeros(width, params.w_x.dtype)}
    if getattr(params, "b_hn", 0) is None and not params.resets_before:
        zeros["b_hn"] = zeros["b"][: width // 3]
    return params._replace(**zeros)


def rest_of_step(cell: Cell, dot: Dot) -> Callable[[Any, Any, Array], Any]:
    """The `unit_step` or `gates_step` of a cell as (params, carry, gates) -> carry."""
    if (gates_step := cell.gates_step) is not None:
        return lambda params, carry, gates_BG: gates_step(params, carry, gates_BG, dot)
    return cell.unit_step  # type: ignore[return-value]


def unit_params(params: Any, policy: Products) -> Any:
    """Parameters that the rest of a step needs: all but those already in the gates."""
    return cast_tree(params._replace(w_x=None, b=None), policy.accumulate)


def require_cell(params: Any, cell: Cell, suffix: str = "") -> None:
    """Raise TypeError unless the parameters are those of this cell."""
    found = cell_of(params)
    if found is not cell:
        raise TypeError(
            f"{cell.function}{suffix} takes {cell.params.__name__}, and these are "
            f"{found.params.__name__}; use {found.function}{suffix}"
        )


def check_step(cell: Cell, params: Any, carry: Any, x: Array) -> None:
    """Raise TypeError or ValueError if the arguments of a step do not fit together."""
    require_cell(params, cell, "_step")
    check_shapes(params)
    check_input("x", x, "B", params.w_x.shape[0])
    check_carry(params, carry, x.shape[0])


def check_shapes(params: Any) -> None:
    """Raise TypeError or ValueError unless parameters are arrays of the cell's shapes."""
    cell, w_x = cell_of(params), params.w_x
    require_array("w_x", w_x)
    if w_x.ndim != 2 or w_x.shape[1] % cell.gates:
        raise ValueError(f"w_x has shape {w_x.shape}; expected (D, {cell.gates} * H)")
    sizes = (w_x.shape[0], w_x.shape[1] // cell.gates)
    optional, projection_size = {*params._field_defaults}, None
    if cell.has_kernel:
        optional |= {"b", "b_hn"}
        if (w_hr := getattr(params, "w_hr", None)) is not None:
            require_array("w_hr", w_hr)
            projection_size = w_hr.shape[-1]
    _require_shapes("", params, _shapes(cell, *sizes, projection_size), optional)


@cache
def _shapes(
    cell: Cell, input_size: int, hidden_size: int, projection_size: int | None
) -> Iterable[tuple[int, ...] | None]:
    """Shapes of the parameters; None for one that is no array, in a user's cell."""
    draw = partial(cell.init, initialisation="pytorch", dtype=jnp.float32)
    if projection_size is not None:
        draw = partial(draw, projection_size=projection_size)
    drawn = jax.eval_shape(lambda: draw(random.key(0), input_size, hidden_size))
    return tuple(getattr(array, "shape", None) for array in drawn)


def check_carry(params: Any, carry: Any, batch_size: int) -> None:
    """Raise TypeError or ValueError if the carry does not fit the parameters."""
    expected = cell_of(params).carry
    if not isinstance(carry, expected):
        raise ValueError(
            f"carry is {type(carry).__name__}; {type(params).__name__} need "
            f"{expected.__name__}({', '.join(expected._fields)})"
        )
    _require_shapes("carry.", carry, _carry_shapes(params, batch_size))


def _require_shapes(
    prefix: str,
    arrays: Any,
    shapes: Iterable[tuple[int, ...] | None],
    optional: Collection[str] = (),
) -> None:
    for name, array, shape in zip(arrays._fields, arrays, shapes, strict=True):
        if shape is None or (array is None and name in optional):
            continue
        require_array(prefix + name, array)
        if array.shape != shape:
            raise ValueError(f"{prefix}{name} has shape {array.shape}; expected {shape}")


def zero_carry(params: Any, batch_size: int) -> Any:
    """The zero carry that starts a sequence, in the accumulator's dtype.

    Examples:
        >>> lstm_jax.zero_carry(lstm_jax.init_gru(jax.random.key(0), 3, 4), batch_size=2).h.shape
        (2, 4)
    """
    dtype = jnp.promote_types(params.w_x.dtype, jnp.float32)
    # A buffer each: one shared by h and c could not be donated.
    zeros = [jnp.zeros(shape, dtype) for shape in _carry_shapes(params, batch_size)]
    return cell_of(params).carry(*zeros)


def _carry_shapes(params: Any, batch_size: int) -> Iterable[tuple[int, int]]:
    """Shape of h, whose size is the number of rows of `w_h`, and of c, if any."""
    cell = cell_of(params)
    hidden_size = params.w_x.shape[1] // cell.gates
    first = params.w_h.shape[0] if "w_h" in params._fields else hidden_size
    others = (hidden_size,) * (len(cell.carry._fields) - 1)
    return [(batch_size, size) for size in (first, *others)]

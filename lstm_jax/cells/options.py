"""One step of any cell, and the options of the LSTM, the GRU and the tanh cell.

Shapes: T time, B batch, H hidden size, G gates side by side.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Literal, TypedDict, get_args

import jax
import jax.numpy as jnp
from jax import Array

from lstm_jax.cells.base import (
    Cell,
    cell_of,
    check_step,
    input_gates,
    rest_of_step,
    unit_params,
    with_biases,
)
from lstm_jax.checks import require_array, require_real
from lstm_jax.precision import ComputeDtype, products

Activation = Literal[
    "tanh", "sigmoid", "relu", "linear", "hard_sigmoid", "hard_tanh", "relu6", "elu", "selu",
    "gelu", "silu", "swish", "softplus", "softsign",
]  # fmt: skip
"""Names of activations, as in Keras: `hard_sigmoid` is relu6(x + 3) / 6."""

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "softsign": jax.nn.soft_sign,
}
_DEFAULTS = {"activation": "tanh", "recurrent_activation": "sigmoid"}


class StepOptions(TypedDict, total=False):
    """Keyword arguments of a step; see `lstm_step`."""

    activation: Activation | Callable[[Array], Array]
    recurrent_activation: Activation | Callable[[Array], Array]
    state_scale: Array | None
    candidate_scale: Array | None


def function_of(name: str, activation: Any) -> Callable[[Array], Array]:
    """The function that an activation names; a function is returned as it is."""
    if callable(activation):
        return activation
    if activation not in get_args(Activation):
        known = ", ".join(get_args(Activation))
        raise ValueError(f"{name} is {activation!r}; choose one of {known}, or give a function")
    return _FUNCTIONS.get(activation) or getattr(jax.nn, activation)


def scaled(array: Array, scale: Array | None) -> Array:
    """The array times a mask, if there is one."""
    return array if scale is None else array * scale.astype(array.dtype)


def chosen(cell: Cell, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults; ValueError for one that the cell lacks."""
    found = {
        name: value
        for name, value in options.items()
        if value is not None and not (isinstance(value, str) and value == _DEFAULTS.get(name))
    }
    known = option_names(cell)
    for name, value in found.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "leave it"
            raise ValueError(f"{name} is given, but {cell.name} has no such option; {takes}")
        if name in _DEFAULTS:
            function_of(name, value)
    return found


@cache
def option_names(cell: Cell) -> tuple[str, ...]:
    """The options of a cell, which are the keywords of its `options_step`."""
    if cell.options_step is None:
        return ()
    parameters = signature(cell.options_step).parameters.values()
    return tuple(each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY)


def take_step(
    cell: Cell,
    params: Any,
    carry: Any,
    x: Array,
    compute_dtype: ComputeDtype | None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, Array]:
    """Run one step of a cell."""
    check_step(cell, params, carry, x)
    found = chosen(cell, options)
    check_scales(params, carry.h.shape, found)
    params = with_biases(params)
    policy = products(compute_dtype, params.w_x.dtype)
    gates_BG = input_gates(policy, params, x)
    if cell.options_step is not None:
        carry = cell.options_step(params, carry, gates_BG, policy.dot, **found)
    else:
        carry = rest_of_step(cell, policy.dot)(unit_params(params, policy), carry, gates_BG)
    return carry, carry.h


def check_scales(
    params: Any, state: tuple[int, ...], options: Mapping[str, Any], times: int | None = None
) -> None:
    """Raise ValueError unless masks have the shape of the state, or of the candidate at T times."""
    candidate = (state[0], params.w_x.shape[1] // cell_of(params).gates)
    leading: list[tuple[int, ...]] = [()] if times is None else [(times,), (1,)]
    for name, expected in (
        ("state_scale", [state]),
        ("candidate_scale", [(*before, *candidate) for before in leading]),
    ):
        if name not in options:
            continue
        require_array(name, options[name])
        require_real(name, options[name])
        if options[name].shape not in expected:
            shapes = " or ".join(map(str, dict.fromkeys(expected)))
            raise ValueError(f"{name} has shape {options[name].shape}; expected {shapes}")

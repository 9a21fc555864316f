"""Options of a layer: which ones kernels support, and their values at each time step.

Shapes: T time, B batch, H hidden size.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from lstm_jax import cells
from lstm_jax.checks import require_real
from lstm_jax.kernels.arithmetic import RNN_ACTIVATIONS


def at_all_times(
    params: cells.Params, carry: Any, times: int, hold: Any, chosen: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """`hold` and `candidate_scale` at each time step; ValueError for other shapes."""
    cells.check_scales(params, carry.h.shape, chosen, times)
    chosen = {n: lax.stop_gradient(v) if n.endswith("scale") else v for n, v in chosen.items()}
    if (scale := chosen.get("candidate_scale")) is not None:
        chosen["candidate_scale"] = jnp.broadcast_to(scale, (times, *scale.shape[1:]))
    if hold is None:
        return None, chosen
    shapes = [(times, *array.shape) for array in carry]
    found = [jnp.shape(share) for share in hold] if isinstance(hold, type(carry)) else []
    fits = [
        len(each) == 3 and all(size in (1, own) for size, own in zip(each, shape, strict=True))
        for each, shape in zip(found, shapes, strict=False)
    ]
    if len(fits) < len(shapes) or not all(fits):
        raise ValueError(
            f"hold is {type(hold).__name__} of shapes {found}; expected {type(carry).__name__} of "
            f"{shapes}, or with 1 in the place of any"
        )
    hold = type(carry)(*map(jnp.broadcast_to, hold, shapes))
    for name, share in hold._asdict().items():
        require_real(f"hold.{name}", share)
    return lax.stop_gradient(hold), chosen


def steps_only(cell: cells.Cell, options: Mapping[str, Any], is_projected: bool) -> list[str]:
    """The given options that no kernel supports, which need a plain scan over the steps."""
    by_kernel = set() if is_projected else {"state_scale"}
    if cell is cells.RNN and options.get("activation") in RNN_ACTIVATIONS:
        by_kernel.add("activation")
    return [name for name, value in options.items() if value is not None and name not in by_kernel]


def require_steps(names: list[str], backend: str) -> None:
    """Raise ValueError if a backend was asked for by name that lacks these options."""
    if names and backend not in ("auto", "reference"):
        raise ValueError(
            f"backend is {backend!r}, which does not support {' or '.join(names)}; choose 'auto' "
            "or 'reference', which then run a plain scan"
        )

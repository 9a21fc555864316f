"""Two stacked layers as a wavefront: one loop for both, the upper layer delayed.

With a delay of K the lower layer first runs K time steps alone. Then each step of the loop computes
time t of the lower layer and t - K of the upper. At the end the upper runs its last K alone: T + K
steps instead of 2T. The lower layer's input product is computed for all times at once, the upper's
for K.

Shapes: T time, B batch, H hidden size, G gates side by side.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lstm_jax.checks import check_input
from lstm_jax.kernels import scan
from lstm_jax.kernels.arithmetic import kernel_of
from lstm_jax.kernels.base import Given, How
from lstm_jax.kernels.carries import select_rows
from lstm_jax.kernels.chunks import is_shorter, scan_chunks, scan_rematerialised
from lstm_jax.precision import ComputeDtype, products, time_product
from lstm_jax.recurrence import begun, check_layer, project
from lstm_jax.sharding import vary_as


def run_pair(
    params: tuple[Any, Any],
    carry: tuple[Any, ...],
    xs: Array,
    mask: Array | None,
    resets: Array | None,
    input_scale: Array | None,
    kept_TBH: Array | None,
    *,
    delay: int,
    compute_dtype: ComputeDtype,
    unroll: int | None,
    remat: int | None,
) -> tuple[tuple[Any, Any], Array]:
    """Run a layer and the one above it, which is `delay` time steps behind.

    Parameters and carries are those of the lower and the upper layer, `kept_TBH` is a dropout mask
    for the upper layer's inputs or None, and the rest are arguments of `lstm_jax.layer`. With
    `remat` both layers finish a chunk before the next one.

    Returns both final carries, and the upper layer's outputs. Raises ValueError for layers of
    different sizes, and otherwise as `lstm` does.
    """
    check_layer(params[0], xs, mask, resets, "scan", unroll, remat)
    policy = products(compute_dtype, params[0].b.dtype)
    params, mask, resets = vary_as(xs, (params, mask, resets))
    carry = tuple(begun(policy, *each, xs) for each in zip(params, carry, strict=True))
    one, other = (jax.tree.map(jnp.shape, each._replace(w_x=None)) for each in params)
    if one != other:
        raise ValueError(
            f"wavefront runs two layers side by side, but their weights are {one} and {other}; "
            "use layers of one size, or set wavefront to None"
        )
    check_input("the upper layer's input", carry[0].h, "B", params[1].w_x.shape[0])
    if xs.ndim == 3:
        xs = select_rows(mask, xs, jnp.zeros_like(xs))
    inputs = (xs, mask, resets, input_scale, kept_TBH)
    run = partial(_delayed, delay, How(kernel_of(params[0]), policy, False, unroll), params)
    if not is_shorter(remat, xs.shape[0]):
        return run(carry, inputs)
    return scan_rematerialised(lambda *given: run(*given[:2]), carry, inputs, remat)


def _delayed(
    delay: int, how: How, params: tuple[Any, Any], carry: tuple[Any, Any], inputs: Any
) -> tuple[tuple[Any, Any], Array]:
    xs, mask, resets, input_scale, kept_TBH = inputs
    marks, times = (mask, resets), xs.shape[0]
    delay = min(delay, times)
    kernel, policy = how.kernel, how.policy
    folded = [kernel.fold(each) for each in params]
    gates_TBG, b_G = project(policy, folded[0], xs, input_scale)
    upper_b_G = folded[1].b.astype(policy.accumulate)
    lower = (kernel.weights(folded[0]), jnp.zeros_like(upper_b_G) if b_G is None else b_G)
    upper = (kernel.weights(folded[1]), upper_b_G)

    def recur(constants: Any, carry: Any, gates_TBG: Array, marks: Any) -> tuple[Any, Array]:
        weights, b_G = constants
        carry, hs_TBH = scan.run(how, Given(weights, b_G, carry, gates_TBG, *marks), None)
        return carry, select_rows(marks[0], hs_TBH, jnp.zeros_like(hs_TBH))

    def upper_gates(hs_KBH: Array, kept_KBH: Array | None) -> Array:
        hs_KBH = hs_KBH if kept_KBH is None else hs_KBH * kept_KBH
        return time_product(policy, hs_KBH, folded[1].w_x)

    def step(state: Any, inputs: Any, index: Array) -> tuple[Any, Array]:
        both, window_KBH = state
        gates_KBG, kept_KBH, marks = inputs
        count = gates_KBG.shape[0]
        gates = jnp.stack((gates_KBG, upper_gates(window_KBH[:count], kept_KBH)), axis=1)
        both, hs = jax.vmap(recur, in_axes=(0, 0, 1, 1), out_axes=(0, 1))(
            constants, both, gates, marks
        )
        return (both, jnp.concatenate([window_KBH[count:], hs[:, 0]])), hs[:, 1]

    # The times at which the two layers are in the loop, and those of the upper after it.
    ahead, behind, ending = slice(delay, None), slice(times - delay), slice(times - delay, None)
    before, window_KBH = recur(lower, carry[0], gates_TBG[:delay], _cut(marks, slice(delay)))
    constants, both = _stacked(lower, upper), _stacked(before, carry[1])
    early_TBH = window_KBH[:0]
    if times > delay:
        paired = jax.tree.map(lambda a: jnp.stack((a[ahead], a[behind]), axis=1), marks)
        taken = (gates_TBG[ahead], _cut(kept_TBH, behind), paired)
        chunk = min(delay, times - delay)
        (both, window_KBH), early_TBH = scan_chunks(step, (both, window_KBH), taken, chunk)
    below, above = (jax.tree.map(lambda a, n=n: a[n], both) for n in range(2))
    gates_KBG = upper_gates(window_KBH, _cut(kept_TBH, ending))
    above, late_KBH = recur(upper, above, gates_KBG, _cut(marks, ending))
    return (below, above), jnp.concatenate([early_TBH, late_KBH])


def _cut(tree: Any, times: slice) -> Any:
    return jax.tree.map(lambda a: a[times], tree)


def _stacked(*trees: Any) -> Any:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)

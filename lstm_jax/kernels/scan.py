"""The fast recurrence: a scan over precomputed input products, with a custom backward pass.

The products `gates_x = xs w_x` are formed for all time steps beforehand. In training, the forward
scan overwrites each row of them with what the backward pass needs; the backward scan overwrites the
same rows with the gates' gradients, from which one product per weight, contracted over time and
batch together, forms its gradient. So one buffer `[T, B, G]` passes through both scans. As scan
outputs, these arrays would first be filled with zeros and take memory of their own. Where nothing
is differentiated, most cells only read the rows.

Shapes: T time, B batch, H hidden size, G size of all gates together.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.kernels import gpu
from lstm_jax.kernels.base import Given, How, Kernel, Results, Row, Weights
from lstm_jax.kernels.carries import before_each, reset_rows, select_rows
from lstm_jax.precision import Products


class _Scaled(NamedTuple):
    """Products of a hidden state that is scaled before each, and their gradients.

    Every product of a cell whose hidden state may be scaled is one of that state with weights.
    """

    policy: Products
    scale_BH: Array
    backward: bool

    def dot(self, left_BK: Array, w: Array) -> Array:
        if self.backward:
            return self.policy.dot(left_BK, w) * self.scale_BH
        return self.policy.dot(left_BK * self.scale_BH, w)

    def weight_gradient(self, h_TBH: Array, dgates_TBG: Array) -> Array:
        return self.policy.weight_gradient(h_TBH * self.scale_BH[None], dgates_TBG)


def _scaling(policy: Products, scale_BH: Array | None, *, backward: bool) -> Any:
    if scale_BH is None:
        return policy
    return _Scaled(policy, scale_BH.astype(policy.accumulate), backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(how: How, given: Given, scale_BH: Array | None) -> Results:
    """Run the recurrence; reverse mode only.

    `scale_BH` multiplies the hidden state before each product; with it GPUs run the form for CPUs.
    """
    on_gpus = [partial(_results_of, module.forward) for module in _on_gpus(how.kernel)]
    keeping = partial(_results_of, _forward, how, scale_BH)
    form = keeping if how.kernel.in_place else partial(_read, how, scale_BH)
    return _by_platform(how, scale_BH, form, on_gpus, given)


def _results_of(forward: Callable[..., Any], *given: Any) -> Results:
    return forward(*given)[0]


def _run_forward(how: How, given: Given, scale_BH: Array | None) -> tuple[Results, tuple[Any, ...]]:
    on_gpus = [module.forward for module in _on_gpus(how.kernel)]
    in_place = partial(_forward, how, scale_BH)
    results, saved_TBG, extra = _by_platform(how, scale_BH, in_place, on_gpus, given)
    saved = given._replace(carry=None, rows_TBG=saved_TBG)
    return results, (saved, given.carry.h, results[1], extra, scale_BH)


def _run_backward(how: How, residuals: tuple[Any, ...], dresults: Results) -> tuple[Given, None]:
    saved, h_BH, hs_TBH, extra, scale_BH = residuals
    # Without the barrier XLA fuses the shift into the transposition for the weight gradient, with a
    # branch per number, which is slower than doing one after the other.
    before_TBH = lax.optimization_barrier(before_each(hs_TBH, h_BH, reverse=how.reverse))
    previous_TBH = reset_rows(saved.resets_TB, before_TBH)
    on_gpus = [module.backward for module in _on_gpus(how.kernel)]
    in_place = partial(_backward, how, scale_BH)
    inputs = (saved, extra, previous_TBH, dresults)
    dcarry, (dgates_TBG, dweights) = _by_platform(how, scale_BH, in_place, on_gpus, *inputs)
    dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, saved.weights)
    db_G = None if saved.b_G is None else dgates_TBG.sum((0, 1)).astype(saved.b_G.dtype)
    return Given(dweights, db_G, dcarry, dgates_TBG, None, None), None


run.defvjp(_run_forward, _run_backward)


def _on_gpus(kernel: Kernel) -> Sequence[Any]:
    """Modules with the form for CUDA and, where it is another, for ROCm."""
    if not kernel.is_fused:
        return (gpu,)
    from lstm_jax.kernels import mosaic  # imports Pallas

    return mosaic, gpu


def _by_platform(
    how: How,
    scale_BH: Array | None,
    in_place: Callable[..., Any],
    on_gpus: Sequence[Callable[..., Any]],
    *inputs: Any,
) -> Any:
    """Choose the form at lowering, so that a multi-platform export holds the right one for each.

    One object for both kinds of GPUs is traced once.
    """
    form = how.kernel.on_gpu
    if form is None or scale_BH is not None:
        return in_place(*inputs)
    forms = [partial(on_gpu, how, form) for on_gpu in on_gpus]
    return lax.platform_dependent(*inputs, cuda=forms[0], rocm=forms[-1], default=in_place)


def _read(how: How, scale_BH: Array | None, given: Given) -> Results:
    """The recurrence without anything for a backward pass."""
    advance = _advancing(how, scale_BH, given)

    def step(carry: Any, inputs: tuple[Array, Any]) -> tuple[Any, Array]:
        gates_BG, marks = inputs
        carry, _, _ = advance(carry, Row(gates_BG[None], jnp.int32(0)), marks)
        return carry, carry.h

    inputs = (given.rows_TBG, (given.mask_TB, given.resets_TB))
    final, hs_TBH = lax.scan(step, given.carry, inputs, reverse=how.reverse, unroll=how.unroll or 1)
    return final, hs_TBH


def _forward(how: How, scale_BH: Array | None, given: Given) -> tuple[Results, Array, Any]:
    advance = _advancing(how, scale_BH, given)

    def step(state: tuple[Any, Array], inputs: tuple[Array, Any]) -> tuple[tuple[Any, Array], Any]:
        carry, buffer_TBG = state
        time, marks = inputs
        carry, row, extra = advance(carry, Row(buffer_TBG, time), marks)
        return (carry, row.buffer), (carry.h, extra)

    times = jnp.arange(given.rows_TBG.shape[0])
    (final, saved_TBG), (hs_TBH, extra) = lax.scan(
        step,
        (given.carry, given.rows_TBG),
        (times, (given.mask_TB, given.resets_TB)),
        reverse=how.reverse,
        unroll=how.unroll or 1,
    )
    return (final, hs_TBH), saved_TBG, extra


def _advancing(how: How, scale_BH: Array | None, given: Given) -> Callable[..., Any]:
    """A time step: (carry, row, (mask, reset)) -> (carry, row, other saved values)."""
    operands = tuple(how.policy.cast(w) if w.ndim == 2 else w for w in given.weights)
    policy = _scaling(how.policy, scale_BH, backward=False)
    bias_G, rows_TBG = given.b_G, given.rows_TBG
    if bias_G is None:
        bias_G = jnp.zeros_like(rows_TBG, shape=rows_TBG.shape[-1:])

    def advance(carry: Any, row: Row, marks: tuple[Array | None, ...]) -> tuple[Any, Row, Any]:
        mask_B, reset_B = marks
        previous = reset_rows(reset_B, carry)
        new, row, extra = how.kernel.forward(policy, operands, bias_G, previous, row)
        return select_rows(mask_B, new, previous), row, extra

    return advance


def _backward(
    how: How,
    scale_BH: Array | None,
    saved: Given,
    extra: Any,
    previous_TBH: Array,
    dresults: Results,
) -> tuple[Any, tuple[Array, Weights]]:
    kernel, (dcarry, dhs_TBH) = how.kernel, dresults
    operands = tuple(how.policy.transposed(w) if w.ndim == 2 else w for w in saved.weights)
    policy = _scaling(how.policy, scale_BH, backward=True)
    factors = kernel.factors(saved.rows_TBG, extra, previous_TBH)

    def step(state: tuple[Any, Array], inputs: tuple[Any, ...]) -> tuple[tuple[Any, Array], Any]:
        dcarry, buffer_TBG = state
        time, dh_BH, factors, mask_B, reset_B = inputs
        dcarry = dcarry._replace(h=dcarry.h + dh_BH)
        zeros = jax.tree.map(jnp.zeros_like, dcarry)
        dnew = select_rows(mask_B, dcarry, zeros)
        row = Row(buffer_TBG, time)
        dprevious, row, emitted = kernel.backward(policy, operands, row, factors, dnew)
        if mask_B is not None:
            held = select_rows(mask_B, zeros, dcarry)
            dprevious = jax.tree.map(jnp.add, dprevious, held)
        return (reset_rows(reset_B, dprevious), row.buffer), emitted

    times = jnp.arange(saved.rows_TBG.shape[0])
    inputs = (times, dhs_TBH, factors, saved.mask_TB, saved.resets_TB)
    (dcarry, drows_TBG), emitted = lax.scan(
        step,
        (dcarry, saved.rows_TBG),
        inputs,
        reverse=not how.reverse,
        unroll=how.unroll or 1,
    )
    return dcarry, kernel.gather(policy, factors, previous_TBH, drows_TBG, emitted)

"""The fast recurrence in the form with the fewest GPU kernel launches, which dominate its time.

A forward step is one product and one kernel for the rest of the cell. What the backward pass needs
is written once per loop iteration of several steps, with a kernel per array. A backward step is one
kernel for the gradients of the cell and one batched product, which gives a term of the gradient of
h per gate; the kernel of the next step adds these up. So all arrays of that kernel have one shape,
`[B, H]`; otherwise XLA would make it two kernels.

Shapes: T time, B batch, H hidden size, G size of all gates together, K number of gates.
"""

from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.kernels.base import Blocks, Elementwise, Given, How, Results, blocks_of
from lstm_jax.kernels.carries import before_each, reset_rows, select_rows
from lstm_jax.sharding import vary_as

_MOST_STEPS, _FEWEST_STEPS, _USUAL_STEPS = 10, 4, 8


def _steps_per_iteration(times: Any, unroll: int | None) -> int:
    """Number of steps per iteration: the user's choice, or a suitable one.

    It divides T if possible, as XLA would copy all outputs for leftover steps. It is 1 if T is
    symbolic, as in a program exported for any length.
    """
    if unroll is not None:
        return unroll
    if not isinstance(times, int):
        return 1
    fitting = [n for n in range(_FEWEST_STEPS, _MOST_STEPS + 1) if times % n == 0]
    return fitting[-1] if fitting else _USUAL_STEPS


def forward(how: How, form: Elementwise, given: Given) -> tuple[Results, Array, Any]:
    """Run the recurrence; returns its results, saved rows `[T, B, G]`, and other saved values."""
    _, policy, reverse, unroll = how
    weights, b_G, carry, gates_TBG, mask_TB, resets_TB = given
    w_HG = policy.cast(weights[0])
    parts = w_HG.shape[1] // carry.h.shape[-1]
    biases = tuple(b_H[None] for b_H in weights[1:])

    def step(before: Any, inputs: tuple[Array, Array | None, Array | None]) -> tuple[Any, Any]:
        x_BG, mask_B, reset_B = inputs
        # Uses the carry before any reset, as resetting it first would take another kernel.
        product_BG = reset_rows(reset_B, policy.dot(before.h, w_HG))
        before = reset_rows(reset_B, before)
        x_BG = x_BG if b_G is None else x_BG + b_G[None]
        operands = form.operands(blocks_of(x_BG, parts), blocks_of(product_BG, parts), biases)
        after = select_rows(mask_B, form.cell(operands, before), before)
        return after, (after.h, *form.keep(operands, before))

    steps = _steps_per_iteration(gates_TBG.shape[0], unroll)
    final, (hs_TBH, rows_TBG, extra) = lax.scan(
        step, carry, (gates_TBG, mask_TB, resets_TB), reverse=reverse, unroll=steps
    )
    return (final, hs_TBH), gates_TBG if rows_TBG is None else rows_TBG, extra


def backward(
    how: How, form: Elementwise, saved: Given, extra: Any, previous_TBH: Array, dresults: Results
) -> tuple[Any, Any]:
    """Run the backward pass; returns the gradient of the initial carry, and `gather`'s result.

    `extra` was saved by `forward`, `previous_TBH` holds the hidden states before each step.
    """
    kernel, policy, reverse, unroll = how
    weights, b_G, _, rows_TBG, mask_TB, resets_TB = saved
    dcarry, dhs_TBH = dresults
    hidden_size = dhs_TBH.shape[-1]
    w_HKH = policy.cast(weights[0]).reshape(weights[0].shape[0], -1, hidden_size)
    w_KHH, parts = w_HKH.transpose(1, 2, 0), w_HKH.shape[1]
    names = form.reads if mask_TB is None else dcarry._fields

    is_narrow = policy.operand != policy.accumulate
    hold = lax.optimization_barrier if is_narrow else lambda array: array

    def joined(doperands: Blocks, dread: Blocks) -> tuple[tuple[Array, Blocks], Blocks]:
        """State for the step before (into its product, around it), and the operands' gradients."""
        if is_narrow:  # two kernels in any case, one per dtype
            return (policy.cast(jnp.stack(doperands[:parts])), dread), doperands
        # Stacked into one array: XLA would make one kernel for the gates and one for the carry.
        blocks = lax.optimization_barrier(jnp.stack([*doperands, *dread]))
        return (blocks, ()), tuple(jnp.unstack(blocks)[: len(doperands)])

    def carried(state: tuple[Array, Blocks], reset_next_B: Array | None) -> Any:
        """Gradient of the carry that entered the step after this one."""
        blocks, direct = state
        shares_KBH = policy.einsum("kbh,khj->kbj", blocks[:parts], w_KHH)
        dh_BH = reset_rows(reset_next_B, reduce(add, shares_KBH))
        dread = dict(zip(names, direct or blocks[len(blocks) - len(names) :], strict=True))
        return dcarry._replace(**dread)._replace(h=dh_BH + dread.get("h", 0))

    def step(state: tuple[Array, Blocks], inputs: Any) -> tuple[Any, Any]:
        dh_BH, prepared, mask_B, reset_B, reset_next_B = inputs
        dafter = carried(state, reset_next_B)
        dafter = dafter._replace(h=dafter.h + dh_BH)
        zeros = jax.tree.map(jnp.zeros_like, dafter)
        doperands, dread = form.backward(prepared, select_rows(mask_B, dafter, zeros), hold)
        if mask_B is not None:
            held = select_rows(mask_B, zeros, dafter)._asdict()
            found = dict(zip(form.reads, dread, strict=True))
            dread = tuple(held[name] + found.get(name, 0) for name in names)
        state, doperands = joined(doperands, reset_rows(reset_B, dread))
        others = doperands[parts:]
        rows = (jnp.concatenate(doperands[:parts], -1), others[0] if others else None)
        return state, rows

    zeros_BH = vary_as(dcarry.h, jnp.zeros_like(dcarry.h))
    direct = tuple(zeros_BH if name == "h" else getattr(dcarry, name) for name in names)
    dhs_TBH = dhs_TBH.at[0 if reverse else -1].add(dcarry.h)
    # Whether the following step, in processing order, starts from zeros.
    next_TB = None if resets_TB is None else before_each(resets_TB, reverse=not reverse)
    prepared = form.prepare(rows_TBG, extra, b_G, previous_TBH)
    operands = parts + form.others
    state, (dadds_TBG, dothers_TBH) = lax.scan(
        step,
        joined((zeros_BH,) * operands, direct)[0],
        (dhs_TBH, prepared, mask_TB, resets_TB, next_TB),
        reverse=not reverse,
        unroll=_steps_per_iteration(dhs_TBH.shape[0], unroll),
    )
    dbefore = carried(state, None if resets_TB is None else resets_TB[-1 if reverse else 0])
    return dbefore, kernel.gather(policy, None, previous_TBH, dadds_TBG, dothers_TBH)

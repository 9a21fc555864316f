"""NVIDIA's cuDNN LSTM, through `jax.experimental.rnn`.

cuDNN takes rows of different lengths, padded at the end. Any mask can be brought to that form: a
masked step keeps the carry, so the real steps of a row are gathered before the call, and its
outputs scattered after it.

Shapes: T time, B batch, D input size, H hidden size.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.experimental import rnn

from lstm_jax.cells import LSTMCarry
from lstm_jax.kernels.carries import select_rows
from lstm_jax.precision import Products
from lstm_jax.sharding import vary_as


def require_gpu() -> None:
    """Raise ValueError if JAX sees no NVIDIA GPU."""
    try:
        jax.devices("cuda")
    except RuntimeError:
        raise ValueError(
            f"backend is 'cudnn', which needs an NVIDIA GPU, and JAX sees {jax.default_backend()} "
            "alone; choose 'auto', or where there is one, pip install 'lstm-jax[cuda]'"
        ) from None


def refuse(asked: Mapping[str, bool]) -> None:
    """Raise ValueError for the first feature asked for; cuDNN has none of them."""
    for what, is_asked in asked.items():
        if is_asked:
            raise ValueError(
                f"backend is 'cudnn', which does not support {what}; choose 'auto', or drop that"
            )


def require_able(
    policy: Products, params: Any, xs: Array, resets: Array | None, unroll: int | None
) -> None:
    """Raise ValueError if a layer needs something that cuDNN does not have."""
    dtypes = {jnp.dtype(policy.operand), jnp.dtype(policy.accumulate)} - {jnp.dtype(jnp.float32)}
    refuse(
        {f"products or sums in {dtype}": True for dtype in dtypes}
        | {
            "a projection": params.w_hr is not None,
            "resets": resets is not None,
            "unroll": unroll is not None,
            "symbolic T or B": not all(isinstance(n, int) for n in xs.shape[:2]),
        }
    )


def run(
    policy: Products,
    params: Any,
    carry: LSTMCarry,
    xs_TBD: Array,
    mask_TB: Array | None,
    *,
    reverse: bool,
) -> tuple[LSTMCarry, Array]:
    """Run the layer; first-order reverse mode only, and a loop under `vmap`.

    `policy.precision` decides whether TF32 is allowed. Inputs must be finite, also at masked steps;
    the hidden states that are returned are undefined there.
    """
    if reverse:
        flipped = None if mask_TB is None else mask_TB[::-1]
        carry, hs_TBH = run(policy, params, carry, xs_TBD[::-1], flipped, reverse=False)
        return carry, hs_TBH[::-1]
    xs_TBD = xs_TBD.astype(jnp.float32)
    times, batch, input_size = xs_TBD.shape
    if mask_TB is None:
        lengths_B, order_TB1 = jnp.full(batch, times, jnp.int32), None
    else:
        lengths_B = mask_TB.sum(0, dtype=jnp.int32)
        order_TB1 = jnp.argsort(~mask_TB, axis=0, stable=True)[..., None]
        xs_TBD = jnp.take_along_axis(xs_TBD, order_TB1, axis=0)
    # cuDNN fails for a row without steps (jax#17966), so it gets one, whose results are dropped.
    lengths = vary_as(xs_TBD, jnp.maximum(lengths_B, 1))
    how = (input_size, carry.h.shape[-1], 1, 0.0, False, policy.precision)
    inputs = (xs_TBD.swapaxes(0, 1), carry.h[None], carry.c[None], _packed(params), lengths)
    ys_BTH, h_1BH, c_1BH = _lstm(how, *inputs)
    hs_TBH = ys_BTH.swapaxes(0, 1)
    if order_TB1 is not None:
        hs_TBH = jnp.take_along_axis(hs_TBH, jnp.argsort(order_TB1, axis=0), axis=0)
    return select_rows(lengths_B > 0, LSTMCarry(h_1BH[0], c_1BH[0]), carry), hs_TBH


def _packed(params: Any) -> Array:
    """All weights in one array: cuDNN has our order of gates, and a second bias, here zero."""
    parts = (params.w_x.T, params.w_h.T, params.b, jnp.zeros_like(params.b))
    return jnp.concatenate([part.ravel() for part in parts]).astype(jnp.float32)


@jax.custom_jvp
def _at_first_order(tree: Any) -> Any:
    return tree


@_at_first_order.defjvp
def _refused(primals: Any, tangents: Any) -> Any:
    raise ValueError("backend is 'cudnn', whose gradient cannot be differentiated; choose 'scan'")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(how: Any, *inputs: Any) -> tuple[Array, Array, Array]:
    return _forward(how, *inputs)[0]


def _forward(how: Any, *inputs: Any) -> tuple[Any, Any]:
    call = sequential_vmap(lambda *inputs: rnn.lstm_fwd(*inputs, *how))
    results, saved = call(*_at_first_order(inputs))
    # JAX's own types would claim that all devices of a `shard_map` have the same outputs.
    return vary_as(inputs[0], results), saved


def _backward(how: Any, saved: Any, gradients: Any) -> tuple[Any, ...]:
    call = sequential_vmap(lambda *given: rnn.lstm_bwd(*how, *given)[:-1])
    return *call(*_at_first_order((saved, gradients))), None


_lstm.defvjp(_forward, _backward)

"""One bias or two: PyTorch and Keras give the input and the hidden state a bias each.

Where both are only ever added, we keep their sum. A GRU whose reset gate works after the recurrent
product multiplies the hidden state's candidate bias with the gate, so that part stays apart:

    b = b_x + b_h for r and z, b_x for n;  b_hn = b_h for n
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_jax.cells import Cell, GRUParams, Params
from lstm_jax.interop.arrays import AnyArray, to_numpy


def params_of_two_biases(
    cell: Cell, w_x: AnyArray, w_h: AnyArray, b_x: AnyArray, b_h: AnyArray
) -> Any:
    """Parameters, still of numpy's arrays; a GRU's with its reset after the product.

    Args:
        cell: the recurrent cell.
        w_x: `[D, G]`, gates in our order.
        w_h: `[H, G]`.
        b_x: the input's bias `[G]`.
        b_h: the hidden state's bias `[G]`.
    """
    if cell.name != "gru":
        return cell.params(w_x, w_h, b_x + b_h)
    inside = 2 * w_h.shape[0]
    b = np.concatenate([b_x[:inside] + b_h[:inside], b_x[inside:]])
    return cell.params(w_x, w_h, b, b_h[inside:])


def two_biases(params: Params) -> tuple[AnyArray, AnyArray]:
    """The input's bias, which gets every sum, and the hidden state's: zeros but a GRU's `b_hn`."""
    b_x = to_numpy(params.b)
    b_h = np.zeros_like(b_x)
    if isinstance(params, GRUParams) and params.b_hn is not None:
        b_h[2 * params.w_h.shape[0] :] = params.b_hn
    return b_x, b_h


def require_no_bias(what: str, params: Params) -> None:
    """Raises ValueError where a bias that is to be left out is not zero."""
    if any(np.any(b) for b in two_biases(params)):
        raise ValueError(f"{what} has biases that are not zero; export them too")

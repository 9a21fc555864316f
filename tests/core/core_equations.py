"""One step of each cell in numpy, as docstrings and papers write it, and a layer of such steps."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lstm_jax import cells


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


ALPHA, LAMBDA = 1.6732632423543772, 1.0507009873554805
ACTIVATIONS: dict[str, Any] = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: LAMBDA * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
}


def normalised(a: np.ndarray, gain: np.ndarray) -> Any:
    centred = a - a.mean(-1, keepdims=True)
    return centred / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * gain


def equations(
    params: Any,
    carry: Any,
    x: Any,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    state_scale: Any = 1,
    candidate_scale: Any = 1,
    hold: Any = None,
) -> Any:
    """The carry after a step, in float64."""
    p = {n: np.asarray(a, np.float64) for n, a in params._asdict().items() if a is not None}
    tanh, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    cell, (h, *c) = cells.cell_of(params), map(np.asarray, carry)
    read, from_x = h * state_scale, np.asarray(x) @ p["w_x"]
    from_h = read @ p["w_h"] if "w_h" in p else np.zeros_like(from_x)
    of_x = np.split(from_x + p["b"], cell.gates, -1)
    of_h = np.split(from_h, cell.gates, -1)
    a = np.split(p["a"], cell.gates) if "a" in p else []
    match cell.name:
        case "rnn":
            new = [tanh(of_x[0] + of_h[0])]
        case "lstm":
            i, f, g, o = map(np.add, of_x, of_h)
            c_new = gate(f) * c[0] + gate(i) * tanh(g) * candidate_scale
            h_new = gate(o) * tanh(c_new)
            new = [h_new @ p["w_hr"] if "w_hr" in p else h_new, c_new]
        case "gru":
            r, z = gate(of_x[0] + of_h[0]), gate(of_x[1] + of_h[1])
            w_n = np.split(p["w_h"], 3, -1)[2]
            inside = r * (of_h[2] + p["b_hn"]) if "b_hn" in p else (r * read) @ w_n
            new = [(1 - z) * tanh(of_x[2] + inside) * candidate_scale + z * h]
        case "mgu":
            f = sigmoid(of_x[0] + of_h[0])
            new = [(1 - f) * np.tanh(of_x[1] + f * (of_h[1] + p["b_hn"])) + f * h]
        case "ln-lstm":
            sums = normalised(from_x, p["g_x"]) + normalised(from_h, p["g_h"]) + p["b"]
            i, f, g, o = np.split(sums, 4, -1)
            c_new = sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)
            new = [sigmoid(o) * np.tanh(normalised(c_new, p["g_c"]) + p["b_c"]), c_new]
        case "ln-gru":
            rz, n = slice(2 * h.shape[-1]), slice(2 * h.shape[-1], None)
            gates, from_x_n, from_h_n = (
                normalised(from_x[:, rz], p["g_x"][rz]) + normalised(from_h[:, rz], p["g_h"][rz]),
                normalised(from_x[:, n], p["g_x"][n]) + p["b"][n],
                normalised(from_h[:, n], p["g_h"][n]) + p["b_hn"],
            )
            r, z = np.split(sigmoid(gates + p["b"][rz]), 2, -1)
            new = [(1 - z) * np.tanh(from_x_n + r * from_h_n) + z * h]
        case "mingru":
            z = sigmoid(of_x[0])
            new = [(1 - z) * h + z * of_x[1]]
        case "minlstm":
            f, i = sigmoid(of_x[0]), sigmoid(of_x[1])
            new = [f / (f + i) * h + i / (f + i) * of_x[2]]
        case "diag-gru":
            r, z = sigmoid(a[0] * h + of_x[0]), sigmoid(a[1] * h + of_x[1])
            new = [(1 - z) * h + z * np.tanh(a[2] * (r * h) + of_x[2])]
        case "diag-lstm":
            p_f, p_o = np.split(p["p"], 2)
            f = sigmoid(a[0] * h + of_x[0] + p_f * c[0])
            c_new = f * c[0] + (1 - f) * np.tanh(a[1] * h + of_x[1])
            new = [sigmoid(a[2] * h + of_x[2] + p_o * c_new) * np.tanh(c_new), c_new]
    if hold is not None:
        new = [
            np.where(share, old, n) if share.dtype == bool else share * old + (1 - share) * n
            for share, old, n in zip(hold, (h, *c), new, strict=True)
        ]
    return type(carry)(*new)


def over_time(
    params: Any,
    carry: Any,
    xs: Any,
    mask: np.ndarray,
    resets: np.ndarray,
    reverse: bool = False,
    at: Callable[[int], dict[str, Any]] = lambda time: {},
) -> Any:
    """The carry after all steps, and the outputs; `at` gives the options of a step by its time."""
    state, ys = carry, np.zeros((*mask.shape, carry.h.shape[-1]))
    for time in range(len(mask))[:: -1 if reverse else 1]:
        # Backward a reset counts after its time.
        before, after = (~resets[time, :, None] | (reverse == late) for late in (True, False))
        old = type(carry)(*(np.asarray(a) * before for a in state))
        new = equations(params, old, np.asarray(xs)[time], **at(time))
        real = mask[time, :, None]
        state = type(carry)(*(np.where(real, n, o) for n, o in zip(new, old, strict=True)))
        ys[time] = np.where(real, state.h, 0)
        state = type(carry)(*(np.asarray(a) * after for a in state))
    return state, ys

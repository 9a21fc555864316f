"""Recurrent layers over time, with masks, resets, both directions and several backends.

Shapes: T time, B batch, D input size, H hidden size, G size of all gates together.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
from jax import Array

from lstm_jax import cells
from lstm_jax.checks import check_flags, check_input, require_count
from lstm_jax.kernels import cudnn, reference, scan, solver
from lstm_jax.kernels.arithmetic import kernel_of
from lstm_jax.kernels.base import Given, How, Kernel
from lstm_jax.kernels.carries import cuts_backward, held, reset_rows, select_rows
from lstm_jax.kernels.chunks import is_shorter
from lstm_jax.kernels.options import at_all_times, require_steps, steps_only
from lstm_jax.kernels.solver import SolverInfo
from lstm_jax.precision import ComputeDtype, Products, cast_tree, products, time_product
from lstm_jax.sharding import vary_as

Backend = Literal["auto", "scan", "parallel", "cudnn", "mosaic", "reference"]
_ABOVE_THE_STACK = 100_000


class MoreOptions(cells.StepOptions, total=False):
    """Keyword arguments that change what a layer computes; see `lstm`."""

    hold: Any


class LayerOptions(MoreOptions, total=False):
    """Keyword arguments of every layer; see `lstm`."""

    mask: Array | None
    resets: Array | None
    reverse: bool
    backend: Backend
    compute_dtype: ComputeDtype | None
    unroll: int | None
    remat: int | None


def lstm(
    params: cells.LSTMParams,
    carry: cells.LSTMCarry | None,
    xs: Array,
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
    compute_dtype: ComputeDtype | None = None,
    unroll: int | None = None,
    remat: int | None = None,
    **more: Unpack[MoreOptions],
) -> tuple[cells.LSTMCarry, Array]:
    """An LSTM layer over time: `lstm_step` at t = 0 .. T-1, or T-1 .. 0 with `reverse`.

    The signature is that of `jax.lax.scan`: `(params, carry, xs) -> (carry, ys)`.

    Args:
        params: weights, from `init_lstm`.
        carry: initial carry, `h [B, H]` (`[B, P]` with a projection) and `c [B, H]`; None starts
            with zeros. With `reverse` it enters at the last time step.
        xs: inputs `[T, B, D]`, or integers `[T, B]` that stand for one-hot rows of size D and are
            looked up in `w_x`. Integers outside [0, D) are clipped.
        mask: bool `[T, B]`, True = a real step, in any pattern. A masked step keeps the carry and
            outputs zeros (Keras repeats its last output there; nnx computes on).
        resets: bool `[T, B]`, True at t starts a new sequence at t: the carry is zeroed before t,
            or after t with `reverse`. A reset at a masked step still counts.
        reverse: run from the last time step to the first; `ys` stay in the order of `xs`.
        backend: `"scan"` is the fast path with a custom backward pass: reverse mode to any order,
            `vmap`, `checkpoint`, and `jvp` of a gradient. `"reference"` is the step function under
            a plain `lax.scan`, for forward mode (`jvp`, `jacfwd`), `hessian` and `linearize`.
            `"parallel"` computes all time steps at once, for cells whose units are independent
            (`mingru`, `minlstm`, `diag_gru`, `diag_lstm`), and is differentiable like `"scan"`.
            `"cudnn"` is NVIDIA's LSTM, on an NVIDIA GPU, in float32 or TF32, without a projection
            or resets: gradients of first order, `vmap` as a loop; token ids become one-hot rows.
            `"mosaic"` is experimental and has never run on a GPU: one kernel for all time steps of
            an LSTM, or a GRU that resets after the product, in bfloat16 or TF32, on a Hopper GPU,
            with first-order gradients; H is a multiple of 64, up to 256, or to 1,024 with few rows.
            A scan with a warning for other layers, and a scan on other devices.
            `"auto"` chooses the fastest that applies, never `"cudnn"` or `"mosaic"`.
        compute_dtype: dtype of the products, see `lstm_jax.precision.products`; carry and outputs
            are in `promote_types(param dtype, float32)`.
        unroll: time steps per iteration of the loop. None chooses for the platform: one on CPU, up
            to ten on GPU to save kernel launches.
        remat: time steps per chunk whose activations are recomputed in the backward pass, which
            holds the carries of all chunks and the activations of one. About sqrt(T) takes the
            least memory; None keeps all activations.
        **more: `activation`, a function or its name (`lstm_jax.cells.Activation`) in place of tanh,
            and `recurrent_activation` in place of the gates' sigmoid. `state_scale` `[B, H]`
            multiplies h before the recurrent product at all time steps: dropout by Gal and
            Ghahramani, arXiv:1512.05287, and Keras's `recurrent_dropout`. `candidate_scale`
            `[T, B, H]`, or `[1, B, H]` for all time steps, multiplies tanh(g), in a GRU n: dropout
            by Semeniuta et al., arXiv:1603.05118. `hold`, a carry of arrays `[T, B, H]` or with
            axes of size 1, bool or number, is the share of each unit's old value that a time step
            keeps: zoneout by Krueger et al., arXiv:1606.01305. Masks get no gradient. All but
            `state_scale` and a ReLU in `rnn` run as a plain scan.

    Returns:
        The final carry, and the hidden states `[T, B, H]`, or `[T, B, P]`. A row with no real step
        and no reset returns its initial carry, as do all rows if T is 0.

    Raises:
        TypeError: parameters of another cell, or an argument that is not an array.
        ValueError: invalid shapes, dtypes or names. Both are raised before anything is computed.

    Examples:
        >>> params = lstm_jax.init_lstm(jax.random.key(0), input_size=3, hidden_size=4)
        >>> xs = jnp.ones((10, 2, 3))
        >>> mask = jnp.arange(10)[:, None] < jnp.array([10, 7])  # the second row has 7 steps
        >>> carry, ys = lstm_jax.lstm(params, None, xs, mask=mask)
        >>> ys.shape, bool(jnp.allclose(carry.h[1], ys[6, 1]))
        ((10, 2, 4), True)
    """
    options: LayerOptions = {
        "mask": mask, "resets": resets, "reverse": reverse, "backend": backend,
        "compute_dtype": compute_dtype, "unroll": unroll, "remat": remat, **more,
    }  # fmt: skip
    return layer_of(cells.LSTM, params, carry, xs, options)[:2]


def gru(
    params: cells.GRUParams,
    carry: cells.GRUCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.GRUCarry, Array]:
    """A GRU layer over time: `gru_step` at each time step. Otherwise like `lstm`.

    Examples:
        >>> params = lstm_jax.init_gru(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.gru(params, None, jnp.ones((10, 2, 3)), reverse=True)
        >>> bool(jnp.allclose(carry.h, ys[0]))  # backward, the first time is the last step
        True
    """
    return layer_of(cells.GRU, params, carry, xs, options)[:2]


def rnn(
    params: cells.RNNParams,
    carry: cells.RNNCarry | None,
    xs: Array,
    **options: Unpack[LayerOptions],
) -> tuple[cells.RNNCarry, Array]:
    """A layer of tanh cells over time: `rnn_step` at each time step. Otherwise like `lstm`.

    Examples:
        >>> params = lstm_jax.init_rnn(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.rnn(params, None, jnp.ones((10, 2, 3)))
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_of(cells.RNN, params, carry, xs, options)[:2]


def layer(
    params: cells.Params,
    carry: Any,
    xs: Array,
    *,
    input_scale: Array | None = None,
    **options: Unpack[LayerOptions],
) -> tuple[Any, Array]:
    """Run the layer whose cell the parameters belong to; see `lstm` for arguments and results.

    `input_scale [T, B]` multiplies the one-hot rows of integer `xs`, as dropout on them does.

    Examples:
        >>> params = lstm_jax.init_mgu(jax.random.key(0), input_size=3, hidden_size=4)
        >>> carry, ys = lstm_jax.layer(params, None, jnp.ones((10, 2, 3)))  # as lstm_jax.mgu has it
        >>> ys.shape
        (10, 2, 4)
    """
    return layer_with_info(params, carry, xs, input_scale=input_scale, **options)[:2]


def layer_of(
    cell: cells.Cell, params: cells.Params, carry: Any, xs: Array, options: LayerOptions
) -> tuple[Any, Array, SolverInfo | None]:
    """Like `layer_with_info`; raises TypeError for another cell's parameters or unknown options."""
    cells.require_cell(params, cell)
    known, more = LayerOptions.__annotations__, MoreOptions.__annotations__
    for name in options:
        if name not in known:
            own = [each for each in known if each not in more]
            has = [*own, "hold", *cells.option_names(cell)]
            raise TypeError(
                f"{cell.function} has no option {name!r}; it has {', '.join(has)}, see lstm"
            )
    return layer_with_info(params, carry, xs, **options)


def layer_with_info(
    params: cells.Params,
    carry: Any,
    xs: Array,
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
    compute_dtype: ComputeDtype | None = None,
    unroll: int | None = None,
    remat: int | None = None,
    hold: Any = None,
    input_scale: Array | None = None,
    **options: Unpack[cells.StepOptions],
) -> tuple[Any, Array, SolverInfo | None]:
    """Like `layer`, with the solver's info if a solver ran; with chunks, that of the worst."""
    check_layer(params, xs, mask, resets, backend, unroll, remat)
    cell, info = cells.cell_of(params), None
    chosen = cells.chosen(cell, options)
    params = cells.with_biases(params)
    policy = products(compute_dtype, params.w_x.dtype)
    if backend == "cudnn":
        cudnn.require_able(policy, params, xs, resets, unroll)
        cudnn.require_gpu()
    params, xs, mask, resets = vary_as((params, xs), (params, xs, mask, resets))
    carry = begun(policy, params, carry, xs)
    hold, chosen = at_all_times(params, carry, xs.shape[0], hold, chosen)
    no_scale = getattr(params, "w_hr", None) is not None or backend == "cudnn"
    plainly = steps_only(cell, {**chosen, "hold": hold}, no_scale)
    require_steps(plainly, backend)
    if xs.shape[0] == 0:
        none = vary_as(xs, jnp.zeros((0, *carry.h.shape), policy.accumulate))
        return carry, none, None
    if is_shorter(remat, xs.shape[0]):
        each = {"mask": mask, "resets": resets, "input_scale": input_scale, "hold": hold}
        each["candidate_scale"] = chosen.pop("candidate_scale", None)

        def run(carry: Any, inputs: Any) -> Any:
            xs, each = inputs
            return layer_with_info(
                params, carry, xs, reverse=reverse, backend=backend,
                compute_dtype=compute_dtype, unroll=unroll, **chosen, **each,
            )  # fmt: skip

        return solver.in_chunks(run, carry, (xs, each), remat, reverse=reverse)
    if xs.ndim == 3:
        # Zeroed, as weight gradients sum over all time steps and 0 times a masked NaN would be NaN.
        xs = select_rows(mask, xs, jnp.zeros_like(xs))
    order, ends_zeroed = resets, None
    if resets is not None and reverse:
        order, ends_zeroed = cuts_backward(resets)
    ready = _Ready(
        policy, params, xs, mask, order, input_scale, reverse, backend, compute_dtype, unroll,
        chosen,
    )  # fmt: skip
    if backend == "reference" or plainly or cell.gates_step is not None:
        carry, hs_TBH = _by_steps(ready, carry, hold)
    elif backend == "cudnn":
        dense = _dense(xs, params.w_x, input_scale)
        carry, hs_TBH = cudnn.run(policy, params, carry, dense, mask, reverse=reverse)
    elif cell.has_kernel:
        carry, hs_TBH = _by_kernel(ready, carry)
    else:
        carry, hs_TBH, info = _by_solver(ready, carry)
    outputs_TBH = select_rows(mask, hs_TBH, jnp.zeros_like(hs_TBH))
    return reset_rows(ends_zeroed, carry), outputs_TBH, info


class _Ready(NamedTuple):
    """What a layer runs on, checked; `order` are its resets in processing order."""

    policy: Products
    params: cells.Params
    xs: Array
    mask: Array | None
    order: Array | None
    input_scale: Array | None
    reverse: bool
    backend: Backend
    compute_dtype: ComputeDtype | None
    unroll: int | None
    chosen: dict[str, Any]


def _by_steps(ready: _Ready, carry: Any, hold: Any) -> tuple[Any, Array]:
    """Run a plain scan; all input products come before it, except with `"reference"`."""
    params, chosen, cell = ready.params, ready.chosen, cells.cell_of(ready.params)

    def whole_step(*at: Any, **options: Any) -> Any:
        return cell.step(params, *at, compute_dtype=ready.compute_dtype, **options)[0]

    take: Callable[..., Any]
    if ready.backend == "reference":
        inputs, take = _dense(ready.xs, params.w_x, ready.input_scale), whole_step
    else:
        inputs = _gates(ready)
        if cell.options_step is not None:
            take = partial(cell.options_step, params, dot=ready.policy.dot)
        else:
            rest = cells.rest_of_step(cell, partial(time_product, ready.policy))
            take = partial(rest, cells.unit_params(params, ready.policy))
    fixed = {name: value for name, value in chosen.items() if name != "candidate_scale"}

    def step(carry: Any, at: tuple[Array, Array | None, Any]) -> Any:
        x, scale, hold = at
        each = {} if scale is None else {"candidate_scale": scale}
        new = take(carry, x, **fixed, **each)
        return new if hold is None else held(hold, carry, new)

    return reference.run(
        step, carry, (inputs, chosen.get("candidate_scale"), hold), ready.mask, ready.order,
        reverse=ready.reverse, unroll=ready.unroll or 1,
    )  # fmt: skip


def _by_kernel(ready: _Ready, carry: Any) -> tuple[Any, Array]:
    """Run the cell's kernel, which has a backward pass of its own."""
    policy, params = ready.policy, ready.params
    kernel = kernel_of(params, ready.chosen.get("activation", "tanh"))
    if ready.backend == "mosaic":
        kernel = _fused(kernel, policy, ready.xs.shape[:2], params.w_h.shape)
    folded = kernel.fold(params)
    gates_TBG, b_G = project(policy, folded, ready.xs, ready.input_scale)
    how = How(kernel, policy, ready.reverse, ready.unroll)
    given = Given(kernel.weights(folded), b_G, carry, gates_TBG, ready.mask, ready.order)
    return scan.run(how, given, ready.chosen.get("state_scale"))


def _by_solver(ready: _Ready, carry: Any) -> tuple[Any, Array, SolverInfo]:
    """Run a cell of independent units, at all time steps at once or in a loop."""
    cell, length = cells.cell_of(ready.params), ready.xs.shape[0]
    assert cell.unit_step is not None
    at_once: bool | None = ready.backend == "parallel"
    if at_once and not isinstance(length, int):
        raise ValueError(f"xs have the symbolic length {length}; use backend 'auto'")
    if ready.backend == "auto" and isinstance(length, int):  # a symbolic T needs a loop
        at_once = None
    linear, reverse, unroll = cell.linear, ready.reverse, ready.unroll or 1
    carry, states, info = solver.run(
        solver.SolverOptions(at_once, linear, reverse, unroll, bounded=linear),
        cell.unit_step, cells.unit_params(ready.params, ready.policy), carry,
        _gates(ready), ready.mask, ready.order,
    )  # fmt: skip
    return carry, states.h, info


def _fused(kernel: Kernel, policy: Products, *shapes: tuple[Any, ...]) -> Kernel:
    """The kernel marked to run fused; warns and leaves it alone if that is not supported."""
    from lstm_jax.kernels import mosaic  # imports Pallas

    why = mosaic.refusal(policy, kernel.on_gpu, *shapes)
    if why is not None:
        # One line, as Python adds a line of source to a warning from within the stack.
        warnings.warn(f"backend 'mosaic' {why}; the scan runs instead", stacklevel=_ABOVE_THE_STACK)
    return kernel._replace(is_fused=why is None)


def require_backend(cell: cells.Cell, backend: str) -> None:
    """Raise ValueError if the cell does not support the backend."""
    if backend == "mosaic" and cell not in (cells.LSTM, cells.GRU):
        raise ValueError(
            f"backend is 'mosaic', but the cell is {cell.name}, not lstm or gru; use 'auto'"
        )
    if backend == "parallel" and cell.unit_step is None:
        if cell not in cells.CELLS:
            raise ValueError(
                "backend is 'parallel', which cells of your own lack; choose 'auto', or write "
                f"{cell.name} as a step for lstm_jax.parallel"
            )
        others = ", ".join(each.name for each in cells.CELLS if each.unit_step is not None)
        raise ValueError(
            f"backend is 'parallel', but the units of {cell.name} depend on each other; choose "
            f"'auto', or one of the cells {others}"
        )
    if backend == "cudnn" and cell is not cells.LSTM:
        cudnn.refuse({f"the cell {cell.name}": True})


def begun(policy: Products, params: cells.Params, carry: Any, xs: Array) -> Any:
    """Check and cast the initial carry; None gives zeros."""
    if carry is None:
        carry = cells.zero_carry(params, xs.shape[1])
    cells.check_carry(params, carry, xs.shape[1])
    return vary_as(xs, cast_tree(carry, policy.accumulate))


def project(
    policy: Products, params: cells.Params, xs: Array, input_scale: Array | None
) -> tuple[Array, Array | None]:
    """Input part of the gates at all time steps `[T, B, G]`, and the bias if not yet added."""
    assert params.b is not None
    b_G, inputs = params.b.astype(policy.accumulate), cells.cell_of(params).inputs

    def changed(rows: Array) -> Array:
        return rows if inputs is None else inputs(cells.unit_params(params, policy), rows)

    if xs.ndim == 3:
        return jax.vmap(changed)(time_product(policy, xs, params.w_x)), b_G
    table_DG = params.w_x.astype(policy.accumulate)
    if input_scale is None and cells.outnumber(xs, table_DG):
        return cells.look_up(changed(table_DG) + b_G[None], xs), None
    rows_TBG = cells.look_up(table_DG, xs)
    if input_scale is not None:
        rows_TBG *= input_scale[..., None]
    return jax.vmap(changed)(rows_TBG), b_G


def _gates(ready: _Ready) -> Array:
    """Input part of the gates at all time steps, with the bias."""
    gates_TBG, b_G = project(ready.policy, ready.params, ready.xs, ready.input_scale)
    return gates_TBG if b_G is None else gates_TBG + b_G[None, None]


def _dense(xs: Array, w_x: Array, input_scale: Array | None) -> Array:
    if xs.ndim == 3:
        return xs
    rows_TBD = cells.look_up(jnp.eye(w_x.shape[0], dtype=w_x.dtype), xs)
    return rows_TBD if input_scale is None else rows_TBD * input_scale[..., None]


def check_layer(
    params: cells.Params,
    xs: Array,
    mask: Array | None,
    resets: Array | None,
    backend: str,
    unroll: int | None,
    remat: int | None,
) -> None:
    """Raise TypeError or ValueError if a layer's arguments do not fit each other."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(get_args(Backend))}")
    require_backend(cells.cell_of(params), backend)
    cells.check_shapes(params)
    for name, count in (("unroll", unroll), ("remat", remat)):
        if count is not None:
            require_count(name, count)
    check_input("xs", xs, "T, B", params.w_x.shape[0])
    check_flags("mask", mask, xs.shape[:2])
    check_flags("resets", resets, xs.shape[:2])

"""Shared implementation of the modules for Flax nnx and Linen: a stack run over sequences.

On real steps, outputs, carries and gradients are those of `nnx.RNN` or `nn.RNN` around the cell
with the same weights. The differences:

- Outputs at padding are zeros (Flax computes on there), and a sequence of length 0 returns its
  initial carry.
- The carry of a module with several layers is a tuple with one entry per layer, each like that of
  Flax's cell: `(c, h)` for an LSTM.
- A zero carry draws no random numbers, so a module keeps no random state.
- Inputs may be integers, which stand for one-hot rows.

Shapes: T time, B batch (any number of axes), D input size, H hidden size.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from lstm_jax.cells import Activation, CellName, GRUReset, cell_named
from lstm_jax.initialisation import Initialisation
from lstm_jax.interop.arrays import input_size
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import StackConfig, run_stack, stack_zero_carry

CALL_OPTIONS = ("time_major", "return_carry", "reverse", "keep_order")


@dataclass(kw_only=True)
class Options:
    """Options of the modules for Flax.

    Attributes:
        layers: number of stacked layers.
        bidirectional: run each layer backward in time too, and concatenate the outputs.
        use_bias: False for layers without biases.
        time_major: default of the call's option, as are `return_carry`, `reverse`, `keep_order`.
        activation: in place of tanh, as Flax's `activation_fn`, see `lstm_jax.lstm`.
        recurrent_activation: in place of the gates' sigmoid, as `gate_fn`.
        unroll: time steps per iteration of the loop; None chooses for the platform.
        backend: implementation of the recurrence, see `lstm_jax.lstm`.
        compute_dtype: dtype of the products, see `lstm_jax.precision.products`.
        initialisation: framework whose initial distributions are used, see `init_lstm`.
        param_dtype: dtype of the weights.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax.interop import nnx_modules
        >>> nnx_modules.LSTM(3, 4, layers=2, time_major=True, rngs=nnx.Rngs(0)).config.layers
        2
    """

    layers: int = 1
    bidirectional: bool = False
    use_bias: bool = True
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    unroll: int | None = None
    backend: Backend = "auto"
    compute_dtype: ComputeDtype = "float32"
    initialisation: Initialisation = "pytorch"
    param_dtype: DTypeLike = jnp.float32


@dataclass(kw_only=True)
class GRUOptions(Options):
    """Options of a GRU.

    Attributes:
        reset: whether the reset gate is applied `"after"` the recurrent product, as in Flax's own
            cell, or `"before"` it.

    Examples:
        >>> from lstm_jax.interop.modules import GRUOptions
        >>> GRUOptions(reset="before").backend
        'auto'
    """

    reset: GRUReset = "after"


def stack_config(cell: CellName, hidden_size: int, options: Options) -> StackConfig:
    """Settings of a module's stack."""
    names = {field.name for field in fields(Options)} - {*CALL_OPTIONS, "param_dtype"}
    return StackConfig(
        cell=cell,
        hidden_size=hidden_size,
        gru_reset=getattr(options, "reset", "after"),
        **{name: getattr(options, name) for name in names},
    )


class Recurrent:
    """The call of a module, which runs the stack that `_stack` returns."""

    _cell: ClassVar[CellName]

    def _stack(self, xs: Array) -> tuple[StackConfig, tuple[Any, ...]]:
        """The stack for these inputs, and its parameters."""
        raise NotImplementedError

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Any = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        init_key: object = None,
        rngs: object = None,
    ) -> Any:
        """Run over sequences; options left None are the module's own.

        Args:
            inputs: `[B, T, D]`, or `[T, B, D]` if time-major; or integers without the last axis.
            initial_carry: `(c, h)` for an LSTM, `h` for the others; a pair of these if
                bidirectional, and with several layers a tuple with one entry per layer. None starts
                with zeros. The core's own carries are also accepted.
            seq_lengths: integers `[B]`, number of real steps at the beginning of each sequence.
            return_carry: return `(carry, outputs)`, with the carry after the last real step.
            time_major: time is the first axis of inputs and outputs.
            reverse: run from each sequence's last real step to its first.
            keep_order: with `reverse`, return outputs in the order of the inputs rather than of the
                run; padding stays at the end either way.
            init_key: ignored; `nn.Bidirectional` passes it.
            rngs: ignored; `nnx.Bidirectional` passes it.

        Returns:
            Outputs `[B, T, H]`, or `[B, T, 2H]` if bidirectional; or carry and outputs.

        Raises:
            ValueError: shapes or dtypes do not match.
        """
        given = zip(CALL_OPTIONS, (time_major, return_carry, reverse, keep_order), strict=True)
        time_major, return_carry, reverse, keep_order = (
            getattr(self, name) if value is None else value for name, value in given
        )
        xs, batch = _time_first(jnp.asarray(inputs), time_major)
        lengths_B = None if seq_lengths is None else _flat_lengths(jnp.asarray(seq_lengths), batch)
        mask = None if lengths_B is None else jnp.arange(xs.shape[0])[:, None] < lengths_B[None]
        if reverse:
            xs = _reverse_real_steps(xs, lengths_B)
        config, layers = self._stack(xs)
        if xs.ndim > 2 and xs.shape[-1] != (size := input_size(layers[0])):
            raise ValueError(
                f"inputs of shape {np.shape(inputs)}; expected "
                f"[{'T, B' if time_major else 'B, T'}, {size}], as in_features is {size}"
            )
        start = None if initial_carry is None else _carry_in(config, layers, initial_carry, batch)
        carry, ys = run_stack(config, layers, start, xs, mask=mask)
        if reverse and keep_order:
            ys = _reverse_real_steps(ys, lengths_B)
        ys = ys.reshape(ys.shape[0], *batch, ys.shape[-1])
        outputs = ys if time_major else jnp.moveaxis(ys, 0, len(batch))
        return (_carry_out(config, carry, batch), outputs) if return_carry else outputs


def _time_first(inputs: Array, time_major: bool) -> tuple[Array, tuple[int, ...]]:
    """Inputs with time first and a single batch axis, and the original batch axes."""
    is_dense = not jnp.issubdtype(inputs.dtype, jnp.integer)
    if inputs.ndim < 1 + is_dense:
        order = "T, ..." if time_major else "..., T"
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}; expected [{order}, D], or "
            f"integers [{order}]"
        )
    axes = inputs.ndim - 1 - is_dense
    xs = jnp.moveaxis(inputs, 0 if time_major else axes, 0)
    batch = xs.shape[1 : 1 + axes]
    return xs.reshape(xs.shape[0], math.prod(batch), *xs.shape[1 + axes :]), batch


def _reverse_real_steps(xs: Array, seq_lengths: Array | None) -> Array:
    """`[T, B, ...]` with the first `seq_lengths [B]` steps of each sequence reversed."""
    if seq_lengths is None:
        return jnp.flip(xs, axis=0)
    times = jnp.arange(xs.shape[0])[:, None]
    lengths = jnp.minimum(seq_lengths, xs.shape[0])[None]
    sources_TB = jnp.where(times < lengths, lengths - 1 - times, times)
    return xs[sources_TB, jnp.arange(xs.shape[1])[None]]


def _flat_lengths(seq_lengths: Array, batch: tuple[int, ...]) -> Array:
    if seq_lengths.shape != batch or not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise ValueError(
            f"seq_lengths are {seq_lengths.dtype} of shape {seq_lengths.shape}; expected integers "
            f"of shape {batch}"
        )
    return seq_lengths.reshape(math.prod(batch))


def _carry_out(config: StackConfig, carry: Any, batch: tuple[int, ...]) -> Any:
    """Convert the stack's carry to Flax's, with arrays `[*batch, H]`."""
    kind = cell_named(config.cell).carry

    def theirs(node: Any) -> Any:
        if not isinstance(node, kind):
            return tuple(map(theirs, node))
        arrays = [jnp.reshape(array, (*batch, config.hidden_size)) for array in node]
        return tuple(arrays[::-1]) if len(arrays) > 1 else arrays[0]  # c, h; ours is h, c

    found = theirs(carry)
    return found if config.layers > 1 else found[0]


def _carry_in(
    config: StackConfig, layers: tuple[Any, ...], carry: Any, batch: tuple[int, ...]
) -> tuple[Any, ...]:
    """Convert Flax's carry, or the core's own, to the stack's, with a single batch axis."""
    shape, rows = (*batch, config.hidden_size), math.prod(batch)
    zeros = jax.eval_shape(lambda: stack_zero_carry(layers, rows))
    own = zeros if config.layers > 1 else zeros[0]
    expected = jax.eval_shape(lambda: _carry_out(config, stack_zero_carry(layers, rows), batch))
    leaves, structure = jax.tree.leaves(carry), cast(Any, jax.tree.structure(carry))
    is_own = structure == jax.tree.structure(own)
    fits = is_own or structure == jax.tree.structure(expected)
    if not fits or any(np.shape(leaf) != shape for leaf in leaves):
        found, wanted = (jax.tree.map(np.shape, each) for each in (carry, expected))
        raise ValueError(
            f"initial_carry has the shapes {found}; expected {wanted}: (c, h) of an LSTM, a pair "
            "where bidirectional, and of several layers a tuple of one entry a layer"
        )
    arrays = [jnp.reshape(leaf, (rows, config.hidden_size)) for leaf in leaves]
    if not is_own and config.cell == "lstm":
        arrays = [array for c, h in zip(arrays[::2], arrays[1::2], strict=True) for array in (h, c)]
    return cast(tuple[Any, ...], jax.tree.unflatten(jax.tree.structure(zeros), arrays))

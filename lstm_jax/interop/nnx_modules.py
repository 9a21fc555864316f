"""`LSTM`, `GRU` and `SimpleRNN` for Flax nnx: shells around the pure core, called as `nnx.RNN` is.

    module = LSTM(in_features=8, hidden_features=16, layers=2, rngs=nnx.Rngs(0))
    outputs = module(inputs)                                    # [B, T, 8] -> [B, T, 16]
    carry, outputs = module(inputs, seq_lengths=lengths, return_carry=True)

On real steps outputs, carries and gradients are those of `nnx.RNN` around the cell with the same
weights. What differs:

- Outputs at padding are zeros (`nnx.RNN` computes on there), and a sequence of length 0 gives its
  initial carry back.
- A module of several layers has a carry of several: a tuple of one entry a layer, each as the
  cell's is there, `(c, h)` of an LSTM.
- A zero carry draws no random numbers, so a module keeps no random state.
- Inputs may be integers, which stand for one-hot rows.

Shapes: T time, B batch (any number of axes), D input size, H hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lstm_jax.cells import CellName, GRUParams, GRUReset, Initialisation, cell_of
from lstm_jax.interop.arrays import directions_of, require_chain
from lstm_jax.interop.plain import layer_from_dict, layer_to_dict
from lstm_jax.interop.sequences import run_sequences
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import Directions, StackConfig, init_stack


class _Recurrent(nnx.Module):
    """What the three modules share; `layers` holds an `nnx.Param` an array, by our plain names."""

    _cell: ClassVar[CellName]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        backend: Backend = "auto",
        compute_dtype: ComputeDtype = "float32",
        initialisation: Initialisation = "pytorch",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
        weights: tuple[Any, ...] | None = None,
        gru_reset: GRUReset = "after",
    ) -> None:
        self.config = StackConfig(
            cell=self._cell,
            layers=layers,
            hidden_size=hidden_features,
            bidirectional=bidirectional,
            gru_reset=gru_reset,
            initialisation=initialisation,
            compute_dtype=compute_dtype,
            backend=backend,
            unroll=unroll,
        )
        self.in_features = in_features
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        if weights is None:
            if rngs is None:
                raise ValueError("rngs is None; give nnx.Rngs(seed), from which weights are drawn")
            weights = init_stack(rngs.params(), self.config, in_features, param_dtype)
        self.layers = nnx.List([_as_module(layer_to_dict(layer)) for layer in weights])

    @classmethod
    def from_layers(cls, layers: tuple[Any, ...], **options: Any) -> Self:
        """A module with these weights, for example from `layers_from_pytorch`; draws nothing.

        Args:
            layers: the stack's parameters.
            options: of the module, but those that the weights tell.

        Raises:
            ValueError: the layers are of another cell, or no stack of one hidden size.
        """
        require_chain(layers)
        each = [params for layer in layers for params in directions_of(layer)]
        if {cell_of(params).name for params in each} != {cls._cell}:
            found = sorted({cell_of(params).name for params in each})
            raise ValueError(
                f"the layers are of the cells {found}; {cls.__name__} needs {cls._cell}"
            )
        sizes = {int(params.w_h.shape[0]) for params in each}
        if len(sizes) > 1:
            raise ValueError(f"the layers have hidden sizes {sorted(sizes)}; expected one for all")
        if isinstance(each[0], GRUParams):
            options["reset"] = "before" if each[0].b_hn is None else "after"
        return cls(
            int(each[0].w_x.shape[0]),
            sizes.pop(),
            layers=len(layers),
            bidirectional=isinstance(layers[0], Directions),
            weights=layers,
            **options,
        )

    def to_layers(self) -> tuple[Any, ...]:
        """The stack's parameters, for the pure functions or `layers_to_pytorch`."""
        return tuple(layer_from_dict(_as_dict(layer)) for layer in self.layers)

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
        rngs: object = None,
    ) -> Any:
        """Runs over sequences; options left None are the module's own.

        Args:
            inputs: `[B, T, D]`, `[T, B, D]` where time-major; or integers without the last axis.
            initial_carry: `(c, h)` of an LSTM, `h` of the others; a pair of these where
                bidirectional, and of several layers a tuple of one entry a layer. None starts
                from zeros.
            seq_lengths: integers `[B]`: real steps from the beginning of each sequence.
            return_carry: give `(carry, outputs)`; the carry is that after the last real step.
            time_major: time comes first, in inputs and outputs.
            reverse: run from each sequence's last real step to its first.
            keep_order: where reversed, outputs in the order of the inputs, not that of the run.
            rngs: never used; `nnx.Bidirectional` passes it to what it is made of.

        Returns:
            Outputs `[B, T, H]`, `[B, T, 2H]` where bidirectional; or carry and outputs.

        Raises:
            ValueError: shapes or dtypes that don't fit.
        """
        carry, outputs = run_sequences(
            self.config,
            self.to_layers(),
            jnp.asarray(inputs),
            initial_carry=initial_carry,
            seq_lengths=None if seq_lengths is None else jnp.asarray(seq_lengths),
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
        )
        give_carry = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if give_carry else outputs


class LSTM(_Recurrent):
    """Layers of LSTM cells; see `lstm_jax.lstm` for the equations.

    Args:
        in_features: D.
        hidden_features: H, of each layer and direction.
        layers: how many, one on the other.
        bidirectional: each layer also runs backward in time; outputs are concatenated.
        time_major: default of the call's option, as are `return_carry`, `reverse`, `keep_order`.
        unroll: steps per iteration of the loop over time.
        backend: how the recurrence is run, see `lstm_jax.lstm`.
        compute_dtype: dtype of the products, see `lstm_jax.precision.products`.
        initialisation: whose distribution the weights are drawn from, see `init_lstm`.
        param_dtype: dtype of the weights.
        rngs: `nnx.Rngs`, whose `params` stream draws the weights.
        weights: the stack's parameters in place of drawn ones; `from_layers` is the way to it.
    """

    _cell = "lstm"


class GRU(_Recurrent):
    """Layers of GRU cells; see `LSTM` for the other arguments.

    Args:
        in_features: D.
        hidden_features: H.
        reset: whether the reset gate works `"after"` the recurrent product, as in nnx's own cell,
            or `"before"` it.
        options: see `LSTM`.
    """

    _cell = "gru"

    def __init__(
        self, in_features: int, hidden_features: int, *, reset: GRUReset = "after", **options: Any
    ) -> None:
        super().__init__(in_features, hidden_features, gru_reset=reset, **options)


class SimpleRNN(_Recurrent):
    """Layers of tanh cells; see `LSTM` for the arguments."""

    _cell = "rnn"


def _as_module(tree: dict[str, Any]) -> nnx.Dict[Any]:
    return nnx.Dict(
        {
            name: _as_module(value) if isinstance(value, dict) else nnx.Param(jnp.asarray(value))
            for name, value in tree.items()
        }
    )


def _as_dict(module: Any) -> dict[str, Any]:
    return {
        name: value[...] if isinstance(value, nnx.Variable) else _as_dict(value)
        for name, value in module.items()
    }

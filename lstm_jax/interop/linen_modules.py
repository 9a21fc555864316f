"""`LSTM`, `GRU` and `SimpleRNN` for Flax Linen: shells around the pure core, called as `nn.RNN` is.

    module = LSTM(features=16, layers=2)
    variables = module.init(key, inputs)
    outputs = module.apply(variables, inputs)                   # [B, T, D] -> [B, T, 16]

Everything that `lstm_jax.interop.nnx_modules` says of its modules holds here, with `nn.RNN` in the
place of `nnx.RNN`. Parameters are `params/layers_0/w_x` and so on, with `forward` and `backward` in
between where bidirectional.

Shapes: T time, B batch, D input size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from lstm_jax.cells import CellName, GRUReset, Initialisation
from lstm_jax.interop.arrays import require_chain, require_names
from lstm_jax.interop.plain import layer_from_dict, layer_to_dict
from lstm_jax.interop.sequences import run_sequences
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import StackConfig, init_stack


def variables_from_layers(layers: tuple[Any, ...]) -> dict[str, Any]:
    """What a module's `apply` takes, of weights such as those from `layers_from_pytorch`.

    The module must have their cell, number of layers, hidden size and directions.
    """
    require_chain(layers)
    params = {f"layers_{index}": layer_to_dict(layer) for index, layer in enumerate(layers)}
    return {"params": params}


def layers_from_variables(variables: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inverse of `variables_from_layers`: the stack's parameters.

    Raises:
        ValueError: names or shapes that are no such module's.
    """
    params = variables["params"]
    names = [f"layers_{index}" for index in range(max(1, len(params)))]
    require_names("params", params, names)
    layers = tuple(layer_from_dict(params[name]) for name in names)
    require_chain(layers)
    return layers


class _Recurrent(nn.Module):
    """What the three modules share."""

    features: int
    in_features: int | None = None
    layers: int = 1
    bidirectional: bool = False
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    backend: Backend = "auto"
    compute_dtype: ComputeDtype = "float32"
    initialisation: Initialisation = "pytorch"
    param_dtype: DTypeLike = jnp.float32

    _cell: ClassVar[CellName]

    @nn.compact
    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Any = None,
        init_key: object = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Runs over sequences; options left None are the module's own.

        Args:
            inputs: `[B, T, D]`, `[T, B, D]` where time-major; or integers without the last axis.
            initial_carry: `(c, h)` of an LSTM, `h` of the others; a pair of these where
                bidirectional, and of several layers a tuple of one entry a layer. None starts
                from zeros.
            init_key: never used; `nn.Bidirectional` passes it to what it is made of.
            seq_lengths: integers `[B]`: real steps from the beginning of each sequence.
            return_carry: give `(carry, outputs)`; the carry is that after the last real step.
            time_major: time comes first, in inputs and outputs.
            reverse: run from each sequence's last real step to its first.
            keep_order: where reversed, outputs in the order of the inputs, not that of the run.

        Returns:
            Outputs `[B, T, H]`, `[B, T, 2H]` where bidirectional; or carry and outputs.

        Raises:
            ValueError: shapes or dtypes that don't fit.
        """
        xs = jnp.asarray(inputs)
        config = self._config()
        carry, outputs = run_sequences(
            config,
            self._layers(config, xs),
            xs,
            initial_carry=initial_carry,
            seq_lengths=None if seq_lengths is None else jnp.asarray(seq_lengths),
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
        )
        give_carry = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if give_carry else outputs

    def _layers(self, config: StackConfig, xs: Array) -> tuple[Any, ...]:
        size = self.in_features
        if size is None:
            if jnp.issubdtype(xs.dtype, jnp.integer):
                raise ValueError("in_features is None; integer inputs do not tell it, so give it")
            size = xs.shape[-1]
        layers = []
        for index in range(config.layers):
            layers.append(layer_from_dict(self._draw(config, index, size)))
            size = config.output_size
        return tuple(layers)

    def _draw(self, config: StackConfig, index: int, input_size: int) -> Any:
        def draw(key: Array) -> dict[str, Any]:
            (layer,) = init_stack(key, replace(config, layers=1), input_size, self.param_dtype)
            return layer_to_dict(layer)

        return self.param(f"layers_{index}", draw)

    def _config(self) -> StackConfig:
        return StackConfig(
            cell=self._cell,
            layers=self.layers,
            hidden_size=self.features,
            bidirectional=self.bidirectional,
            gru_reset=self._reset(),
            initialisation=self.initialisation,
            compute_dtype=self.compute_dtype,
            backend=self.backend,
            unroll=self.unroll,
        )

    def _reset(self) -> GRUReset:
        return "after"


class LSTM(_Recurrent):
    """Layers of LSTM cells; see `lstm_jax.lstm` for the equations.

    Attributes:
        features: H, of each layer and direction.
        in_features: D; None takes it from the inputs, which integers don't tell.
        layers: how many, one on the other.
        bidirectional: each layer also runs backward in time; outputs are concatenated.
        time_major: default of the call's option, as are `return_carry`, `reverse`, `keep_order`.
        unroll: steps per iteration of the loop over time.
        backend: how the recurrence is run, see `lstm_jax.lstm`.
        compute_dtype: dtype of the products, see `lstm_jax.precision.products`.
        initialisation: whose distribution the weights are drawn from, see `init_lstm`.
        param_dtype: dtype of the weights.
    """

    _cell = "lstm"


class GRU(_Recurrent):
    """Layers of GRU cells; see `LSTM` for the other attributes.

    Attributes:
        reset: whether the reset gate works `"after"` the recurrent product, as in Linen's own cell,
            or `"before"` it.
    """

    reset: GRUReset = "after"

    _cell = "gru"

    def _reset(self) -> GRUReset:
        return self.reset


class SimpleRNN(_Recurrent):
    """Layers of tanh cells; see `LSTM` for the attributes."""

    _cell = "rnn"

"""`LSTM`, `GRU` and `SimpleRNN` for Flax nnx: the pure core, called like `nnx.RNN`.

    module = LSTM(in_features=8, hidden_features=16, layers=2, rngs=nnx.Rngs(0))
    outputs = module(inputs)                                    # [B, T, 8] -> [B, T, 16]
    carry, outputs = module(inputs, seq_lengths=lengths, return_carry=True)

`lstm_jax.interop.modules` has the arguments of a call and the differences to `nnx.RNN`. A module's
state has our plain names: `layers/0/w_x` and so on.

Shapes: T time, B batch (any number of axes), D input size, H hidden size.
"""

from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lstm_jax.interop.arrays import config_of_layers, input_size, require_no_projection
from lstm_jax.interop.modules import CALL_OPTIONS, GRUOptions, Options, Recurrent, stack_config
from lstm_jax.interop.plain import layers_from_dicts, layers_to_dicts
from lstm_jax.stack import StackConfig, init_stack


class _Recurrent(Recurrent, nnx.Module):
    _options: ClassVar[type[Options]] = Options

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        rngs: nnx.Rngs | None = None,
        weights: tuple[Any, ...] | None = None,
        **options: Any,
    ) -> None:
        chosen = self._options(**options)
        self.config = stack_config(self._cell, hidden_features, chosen)
        self.in_features = in_features
        for name in CALL_OPTIONS:
            setattr(self, name, getattr(chosen, name))
        if weights is None:
            if rngs is None:
                raise ValueError("rngs is None; give nnx.Rngs(seed), from which weights are drawn")
            weights = init_stack(rngs.params(), self.config, in_features, chosen.param_dtype)
        layers = layers_to_dicts(weights).values()
        self.layers = nnx.data(jax.tree.map(lambda a: nnx.Param(jnp.asarray(a)), list(layers)))

    @classmethod
    def from_layers(cls, layers: tuple[Any, ...], **options: Any) -> Self:
        """Make a module with given weights, for example from `layers_from_pytorch`.

        Args:
            layers: the stack's parameters.
            options: options of the module, except those that the weights determine.

        Raises:
            ValueError: the layers are of another cell, of several hidden sizes, or projected.
        """
        found = config_of_layers(layers, "a module has one of each")
        require_no_projection(layers[0], "a module")
        if found.cell != cls._cell:
            raise ValueError(
                f"the layers are of the cell {found.cell}; {cls.__name__} needs {cls._cell}"
            )
        if found.cell == "gru":
            options["reset"] = found.gru_reset
        told = ("layers", "bidirectional", "use_bias")
        options |= {name: getattr(found, name) for name in told}
        return cls(input_size(layers[0]), found.hidden_size, weights=layers, **options)

    def to_layers(self) -> tuple[Any, ...]:
        """The stack's parameters, for the pure functions or `layers_to_pytorch`."""
        arrays = jax.tree.map(
            lambda param: param[...], self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
        )
        named = {str(index): layer for index, layer in enumerate(arrays)}
        return layers_from_dicts(named, self.config.gru_reset)

    def _stack(self, xs: Array) -> tuple[StackConfig, tuple[Any, ...]]:
        return self.config, self.to_layers()


class LSTM(_Recurrent):
    """Layers of LSTM cells; see `lstm_jax.lstm` for the equations.

    Args:
        in_features: D.
        hidden_features: H, of each layer and direction.
        rngs: `nnx.Rngs`, whose `params` stream draws the weights.
        weights: the stack's parameters, instead of drawn ones; prefer `from_layers`.
        options: see `lstm_jax.interop.modules.Options`.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax.interop import nnx_modules
        >>> module = nnx_modules.LSTM(3, 4, layers=2, rngs=nnx.Rngs(0))
        >>> module(jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7])).shape  # batch first
        (2, 10, 4)
    """

    _cell = "lstm"


class GRU(_Recurrent):
    """Layers of GRU cells; see `LSTM` for the arguments, and `GRUOptions` for `reset`.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax.interop import nnx_modules
        >>> module = nnx_modules.GRU(3, 4, reset="before", rngs=nnx.Rngs(0))
        >>> carry, ys = module(jnp.ones((2, 10, 3)), return_carry=True)
    """

    _cell = "gru"
    _options = GRUOptions


class SimpleRNN(_Recurrent):
    """Layers of tanh cells; see `LSTM` for the arguments.

    Examples:
        >>> from flax import nnx
        >>> from lstm_jax.interop import nnx_modules
        >>> module = nnx_modules.SimpleRNN(3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> module(jnp.ones((2, 10, 3))).shape
        (2, 10, 8)
    """

    _cell = "rnn"

"""`LSTM`, `GRU` and `SimpleRNN` for Flax Linen: the pure core, called like `nn.RNN`.

    module = LSTM(features=16, layers=2)
    variables = module.init(key, inputs)
    outputs = module.apply(variables, inputs)                   # [B, T, D] -> [B, T, 16]

`lstm_jax.interop.modules` has the arguments of a call and the differences to `nn.RNN`. Parameters
have our plain names: `params/layers/0/w_x` and so on.

Shapes: T time, B batch, D input size, H hidden size.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lstm_jax.cells import GRUReset
from lstm_jax.interop.arrays import require_kind, require_names
from lstm_jax.interop.modules import GRUOptions, Options, Recurrent, stack_config
from lstm_jax.interop.plain import layers_from_dicts, layers_to_dicts
from lstm_jax.stack import StackConfig, init_stack


def variables_from_layers(layers: tuple[Any, ...]) -> dict[str, Any]:
    """Variables for `apply` of a module with the same cell, layers, hidden size and directions."""
    return {"params": {"layers": layers_to_dicts(layers)}}


def layers_from_variables(
    variables: Mapping[str, Any], *, reset: GRUReset = "after"
) -> tuple[Any, ...]:
    """The inverse of `variables_from_layers`; raises ValueError for another module's variables.

    `reset` is the module's; only variables of a GRU without biases do not show it.
    """
    require_kind("variables", variables, Mapping, "give what the module's init returned")
    require_names("variables", variables, ["params"], variables)
    require_names("params", variables["params"], ["layers"])
    return layers_from_dicts(variables["params"]["layers"], reset)


class _Recurrent(Recurrent, nn.Module, Options):
    features: int
    in_features: int | None = None

    __call__ = nn.compact(Recurrent.__call__)

    def _stack(self, xs: Array) -> tuple[StackConfig, tuple[Any, ...]]:
        config = stack_config(self._cell, self.features, self)
        size = self.in_features
        if size is None:
            if jnp.issubdtype(xs.dtype, jnp.integer):
                raise ValueError("in_features is None; integer inputs do not tell it, so give it")
            size = xs.shape[-1]

        def draw(key: Array) -> dict[str, Any]:
            return layers_to_dicts(init_stack(key, config, size, self.param_dtype))

        return config, layers_from_dicts(self.param("layers", draw), config.gru_reset)


class LSTM(_Recurrent):
    """Layers of LSTM cells; see `lstm_jax.lstm` for the equations.

    Attributes:
        features: H, of each layer and direction.
        in_features: D; None takes it from the inputs, which is impossible for integers.

    See `lstm_jax.interop.modules.Options` for the others.

    Examples:
        >>> from lstm_jax.interop import linen_modules
        >>> module, xs = linen_modules.LSTM(4, layers=2), jnp.ones((2, 10, 3))
        >>> variables = module.init(jax.random.key(0), xs)
        >>> module.apply(variables, xs, seq_lengths=jnp.array([10, 7])).shape
        (2, 10, 4)
    """

    _cell = "lstm"


class GRU(_Recurrent, GRUOptions):
    """Layers of GRU cells; see `LSTM` for the attributes, and `GRUOptions` for `reset`.

    Examples:
        >>> from lstm_jax.interop import linen_modules
        >>> module, xs = linen_modules.GRU(4, reset="before"), jnp.ones((2, 10, 3))
        >>> ys, variables = module.init_with_output(jax.random.key(0), xs)
    """

    _cell = "gru"


class SimpleRNN(_Recurrent):
    """Layers of tanh cells; see `LSTM` for the attributes.

    Examples:
        >>> from lstm_jax.interop import linen_modules
        >>> module, xs = linen_modules.SimpleRNN(4, bidirectional=True), jnp.ones((2, 10, 3))
        >>> module.init_with_output(jax.random.key(0), xs)[0].shape
        (2, 10, 8)
    """

    _cell = "rnn"

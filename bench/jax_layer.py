"""A layer's forward and backward pass, for ours and for peers that are JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bench.report import OURS
from bench.shapes import DType, LayerShape, LayerWork
from lstm_jax.recurrence import layer

Forward = Callable[[Any, Any, Any], Array]
Named = Callable[[Any, Any, Any], dict[str, Any]]


class JaxLayerPass:
    """See `LayerPass`.

    Args:
        forward: (weights, carry, xs) -> ys.
        inputs: weights, carry and xs.
        dys: the gradient of ys.
        named: gradients of `inputs` -> the same by our names, in our shapes.
        settings: see `LayerPass`.
    """

    def __init__(
        self,
        forward: Forward,
        inputs: tuple[Any, Any, Any],
        dys: Any,
        named: Named,
        settings: Mapping[str, str],
    ) -> None:
        self._forward, self._named = forward, named
        self._inputs, self._dys = jax.device_put((inputs, dys))
        self.settings = settings

    def run(self) -> None:
        """See `LayerPass`."""
        jax.block_until_ready(_forward_backward(self._forward, self._inputs, self._dys))

    def outputs(self) -> np.ndarray[Any, Any]:
        """The layer's outputs, in the implementation's own shape."""
        return np.asarray(self._forward(*self._inputs), np.float32)

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """See `LayerPass`."""
        _, gradients = _forward_backward(self._forward, self._inputs, self._dys)
        named = self._named(*gradients)
        return {name: np.asarray(each, np.float32) for name, each in named.items()}


@partial(jax.jit, static_argnums=0)
def _forward_backward(forward: Forward, inputs: Any, dys: Array) -> tuple[Array, Any]:
    # Full float32 on a GPU, as ours: its default there is TF32.
    with jax.default_matmul_precision("highest"):
        ys, back = jax.vjp(forward, *inputs)
        return ys, back(dys.astype(ys.dtype))


class OurLayer:
    """`lstm_jax`."""

    name = OURS

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> JaxLayerPass:
        """See `LayerImplementation`."""

        def forward(params: Any, carry: Any, xs: Array) -> Array:
            return layer(params, carry, xs, compute_dtype=dtype)[1]

        def named(params: Any, carry: Any, xs: Any) -> dict[str, Any]:
            return {**params._asdict(), **carry._asdict(), "xs": xs}

        inputs = (work.params, jax.tree.map(jnp.asarray, work.carry), work.xs)
        return JaxLayerPass(forward, inputs, work.dys, named, {"backend": "auto"})

"""Equinox: cells under `lax.scan`, embedding and linear layer, trained with Optax."""

from functools import cache, partial
from operator import attrgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax, random

from bench.peers import Implementation, LayerPass, Training
from bench.peers.on_jax import Loss, Parts, cast, layer_pass, optax_training, stacked_loss, stored
from bench.shapes import AnyParams, AnySystem, DType, LayerShape, System
from lstm_jax.cells import CellName
from lstm_jax.models import LanguageModelParams, output_layer


class Peer(Implementation):
    """Equinox's modules as one pytree, in one jitted step."""

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        if not (isinstance(system, System) and isinstance(params, LanguageModelParams)):
            raise ValueError(f"no {system.name} are built for Equinox")
        settings = {
            "input": "one_hot" if system.embedding_size is None else "eqx.nn.Embedding",
            "loop": "lax.scan around the cell, vmap over the batch",
            "step": "one jax.jit, state donated",
        }
        weights = _weights(system, params)
        return optax_training(system, _loss(system, dtype), weights, settings)

    def layer(self, shape: LayerShape, dtype: DType) -> LayerPass:
        def forward(cell: Any, carry: Any, xs: Array) -> Array:
            return _run_cell(*cast((cell, carry, xs), stored(dtype)))[1]

        def named(cell: Any, carry: Any, xs: Any) -> dict[str, Any]:
            found = {"xs": xs, "w_x": cell.weight_ih.T, "w_h": cell.weight_hh.T, "b": cell.bias}
            if shape.cell == "gru":
                return found | {"h": carry, "b_hn": cell.bias_n}
            return found | dict(zip("hc", carry, strict=True))

        work = shape.work()
        params, initial = work.only
        carry = tuple(initial) if shape.cell == "lstm" else initial.h
        inputs = (_make_cell(shape.cell, params), carry, work.xs)
        settings = {"loop": "lax.scan", "batch": "vmap"}
        return layer_pass(forward, inputs, work.dys, named, settings, dtype)


def _make_cell(cell: CellName, params: Any) -> Any:
    """The cell with our weights; gates have the same order."""
    kind = eqx.nn.LSTMCell if cell == "lstm" else eqx.nn.GRUCell
    names, arrays = ["weight_ih", "weight_hh", "bias"], [params.w_x.T, params.w_h.T, params.b]
    if cell == "gru":
        names.append("bias_n")
        arrays.append(params.b_hn)
    empty = kind(params.w_x.shape[0], params.w_h.shape[0], key=random.key(0))
    return eqx.tree_at(attrgetter(*names), empty, tuple(map(jnp.copy, arrays)))


def _run_cell(cell: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
    """Run over time: `[T, B, D] -> [T, B, H]`; the carry is (h, c), or h."""

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        carry = jax.vmap(cell)(x, carry)
        return carry, carry[0] if isinstance(carry, tuple) else carry

    return lax.scan(step, carry, xs)


def _weights(system: System, params: LanguageModelParams) -> dict[str, Any]:
    """Our weights in its modules; a tied output layer only has a bias."""
    found: dict[str, Any] = {"cells": [_make_cell(system.cell, each) for each in params.layers]}
    output = output_layer(params)
    if system.tied:
        found["output_bias"] = jnp.copy(output.b)
    else:
        empty = eqx.nn.Linear(system.hidden_size, system.vocabulary_size, key=random.key(0))
        arrays = (jnp.copy(output.w.T), jnp.copy(output.b))
        found["output"] = eqx.tree_at(lambda layer: (layer.weight, layer.bias), empty, arrays)
    if params.embedding is not None:
        found["embedding"] = eqx.nn.Embedding(weight=jnp.copy(params.embedding))
    return found


@cache
def _loss(system: System, dtype: DType) -> Loss:
    """Cached, because compiled code is found by its identity."""

    def inputs(modules: Any, tokens: Array) -> Array:
        if system.embedding_size is None:
            return jax.nn.one_hot(tokens, system.vocabulary_size, dtype=dtype)
        return jax.vmap(jax.vmap(modules["embedding"]))(tokens)

    def layer(index: int, modules: Any, carry: Any, xs: Array) -> tuple[Any, Array]:
        carry, ys = _run_cell(modules["cells"][index], carry, xs)
        return cast(carry, "float32"), ys

    def drop(rate: float, xs: Array, key: Array, at_all_times: bool) -> Array:
        dropout = partial(eqx.nn.Dropout(rate), key=key)
        return xs * dropout(jnp.ones_like(xs[0])) if at_all_times else dropout(xs)

    def logits(modules: Any, hs: Array) -> Array:
        if system.tied:
            return hs @ modules["embedding"].weight.T + modules["output_bias"]
        return jax.vmap(jax.vmap(modules["output"]))(hs)

    parts = Parts(inputs, layer, drop, logits)
    return stacked_loss(system, parts, lambda *given: cast(given, dtype))

"""Equinox: its cells under `lax.scan`, its embedding and linear layer, trained with Optax."""

from __future__ import annotations

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, random

from bench.peers.equinox_parts import cast, make_cell, run_cell
from bench.peers.optax_training import OptaxTraining, Program, make_optimizer, token_loss
from bench.shapes import AnyParams, AnySystem, DType, System
from lstm_jax.models import LanguageModelParams, output_layer


class EquinoxCells:
    """Equinox's modules as one pytree, in one jitted step."""

    name = "equinox"

    def build(self, system: AnySystem, dtype: DType, params: AnyParams) -> OptaxTraining:
        """See `Implementation`."""
        if not isinstance(system, System):
            raise ValueError(f"no {system.name} are built for Equinox")
        assert isinstance(params, LanguageModelParams)
        return OptaxTraining(
            system,
            _make_program(system, dtype),
            _weights(system, params),
            lambda: _zero_carry(system),
            {
                "input": "one_hot" if system.embedding_size is None else "eqx.nn.Embedding",
                "loop": "lax.scan around the cell, vmap over the batch",
                "step": "one jax.jit, state donated",
            },
        )


PEER = EquinoxCells()


def _weights(system: System, params: LanguageModelParams) -> dict[str, Any]:
    """Our weights in its modules; those of a tied output layer are its bias alone."""
    found: dict[str, Any] = {"cells": [make_cell(system.cell, each) for each in params.layers]}
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


def _zero_carry(system: System) -> list[Any]:
    def zeros() -> Array:
        return jnp.zeros((system.batch_size, system.hidden_size))

    return [(zeros(), zeros()) if system.cell == "lstm" else zeros() for _ in range(system.layers)]


@cache
def _make_program(system: System, dtype: DType) -> Program:
    """Cached, because compiled code is found again by the program's identity."""
    at_inputs = system.dropout_place == "inputs"

    def drop(rate: float, xs: Array, key: Array | None) -> Array:
        if key is None or not rate:
            return xs
        dropped: Array = eqx.nn.Dropout(rate)(xs, key=key)
        return dropped

    def inputs(modules: Any, tokens: Array) -> Array:
        if system.embedding_size is None:
            return jax.nn.one_hot(tokens, system.vocabulary_size, dtype=dtype)
        embedded: Array = jax.vmap(jax.vmap(modules["embedding"]))(tokens)
        return embedded

    def logits(modules: Any, hs: Array) -> Array:
        if system.tied:
            found = hs @ modules["embedding"].weight.T + modules["output_bias"]
        else:
            found = jax.vmap(jax.vmap(modules["output"]))(hs)
        rounded: Array = found.astype(jnp.float32)
        return rounded

    def forward(
        weights: Any, carry: Any, tokens: Array, key: Array | None
    ) -> tuple[list[Any], Array]:
        modules, carry = cast((weights, carry), dtype)
        keys = [None] * (system.layers + 1) if key is None else random.split(key, system.layers + 1)
        xs, finals = inputs(modules, tokens), []
        for index, (cell, before) in enumerate(zip(modules["cells"], carry, strict=True)):
            if at_inputs:
                xs = xs * drop(system.dropout, jnp.ones_like(xs[0]), keys[index])
            final, xs = run_cell(cell, before, xs)
            if not at_inputs:
                xs = drop(system.dropout, xs, keys[index])
            finals.append(cast(final, "float32"))
        return finals, logits(modules, drop(system.output_dropout, xs, keys[-1]))

    return Program(token_loss(forward), make_optimizer(system))

"""Flax's plain sampling loop: one jitted step, called from Python, its state donated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax, random

from bench.peers.flax_nnx import Network, load, make_network, zero_carry
from bench.shapes import DType, Job, System
from lstm_jax.models import LanguageModelParams


class FlaxNnxSampler:
    """Flax as its performance guide has it: `jax.jit` over the leaves of split state."""

    name = "flax-nnx"

    def build(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> FlaxSampling:
        """See `SamplingImplementation`."""
        return FlaxSampling(system, dtype, params, job)


PEER = FlaxNnxSampler()


class FlaxSampling:
    """See `Sampling`."""

    settings: Mapping[str, str] = {"loop": "one jitted step a token, state donated"}

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams, job: Job) -> None:
        made = make_network(system, dtype)
        stored = jax.tree.map(lambda leaf: leaf.astype(dtype), load(made, params))
        # Leaves, since flattening an `nnx.State` at every call costs as much as a small step.
        leaves, form = jax.tree.flatten(stored)
        top_n = min(job.top_n, system.vocabulary_size)
        self._weights = tuple(leaves)
        self._how = _How(made.graph, form, job.temperature, top_n)
        self._system, self._job = system, job
        self._prompts = jnp.asarray(job.prompts(system))

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """See `Sampling`."""
        state = _State(zero_carry(self._system, self._job.batch), random.key(0))
        token, state = _absorb(self._how, self._weights, state, self._prompts)
        written = [token]
        for _ in range(1, self._job.places):
            token, state = _step(self._how, self._weights, state, token)
            written.append(token)
        return np.stack(jax.device_get(written))


class _How(NamedTuple):
    """What is compiled."""

    graph: Any
    form: Any
    temperature: float
    top_n: int

    def network(self, weights: tuple[Array, ...]) -> Network:
        network: Network = nnx.merge(self.graph, jax.tree.unflatten(self.form, weights))
        return network


class _State(NamedTuple):
    carry: tuple[Any, ...]
    key: Array


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _absorb(
    how: _How, weights: tuple[Array, ...], state: _State, tokens: Array
) -> tuple[Array, _State]:
    network = how.network(weights)
    with jax.default_matmul_precision("highest"):
        carry, hs = network.hidden(tokens, state.carry, None)
        logits = network.logits(hs[-1])
    return _chosen(how, state._replace(carry=carry), logits)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    how: _How, weights: tuple[Array, ...], state: _State, token: Array
) -> tuple[Array, _State]:
    network = how.network(weights)
    with jax.default_matmul_precision("highest"):
        x = network.inputs(token)
        carries = []
        for layer, carry in zip(network.layers, state.carry, strict=True):
            carry, x = layer.cell(carry, x)
            carries.append(carry)
        logits = network.logits(x)
    return _chosen(how, state._replace(carry=tuple(carries)), logits)


def _chosen(how: _How, state: _State, logits: Array) -> tuple[Array, _State]:
    logits = logits.astype(jnp.float32)
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), state
    key, use = random.split(state.key)
    logits, state = logits / how.temperature, state._replace(key=key)
    if not how.top_n:
        return random.categorical(use, logits).astype(jnp.int32), state
    values, ids = lax.top_k(logits, how.top_n)
    drawn = random.categorical(use, values)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0], state

"""The shapes of the systems, and the data and weights that every implementation starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import random

from lstm_jax.cells import CellName
from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams, output_layer

BATCHES = 16
"""Batches of one epoch; the recurrent state is carried through it and zeroed where it begins."""

_OUTPUT_SCALE = 32.0


@dataclass(frozen=True)
class System:
    """A language model's shape, and how it is trained.

    Attributes:
        name: what the command line calls it.
        vocabulary_size: V, distinct tokens.
        cell: "lstm", or "gru" (reset after the product).
        layers: how many, one on the other.
        hidden_size: H.
        batch_size: B, sequences side by side.
        sequence_length: T, steps of truncated backpropagation.
        embedding_size: None feeds tokens one-hot.
        dropout: share dropped of every layer's outputs, the last's included.
        clip_norm: the global norm that gradients are scaled down to.
        learning_rate: Adam's.
    """

    name: str
    vocabulary_size: int
    cell: CellName
    layers: int
    hidden_size: int
    batch_size: int
    sequence_length: int
    embedding_size: int | None = None
    dropout: float = 0.0
    clip_norm: float = 5.0
    learning_rate: float = 1e-3

    @property
    def input_size(self) -> int:
        """Size of what enters the first layer."""
        return self.embedding_size or self.vocabulary_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one training step learns from."""
        return self.batch_size * self.sequence_length

    def rows(self, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
        """One epoch of random tokens, int32 `[BATCHES T + 1, B]`, time first."""
        shape = (BATCHES * self.sequence_length + 1, self.batch_size)
        draw = np.random.default_rng(seed)
        return draw.integers(0, self.vocabulary_size, shape, dtype=np.int32)

    def batch(self, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets `[T, B]` of one batch; the epochs repeat."""
        start = index % BATCHES * self.sequence_length
        rows = self.rows()[start : start + self.sequence_length + 1]
        return rows[:-1], rows[1:]

    def initial_params(self, seed: int = 0) -> LanguageModelParams:
        """The weights that every implementation starts from.

        The output layer is drawn larger than usual: else the first loss is log V whatever the
        layers below compute, and comparing it would prove nothing. A GRU's bias inside the reset
        product is zero, since Flax's cell has none.
        """
        config = LanguageModelConfig(
            cell=self.cell,
            layers=self.layers,
            hidden_size=self.hidden_size,
            embedding_size=self.embedding_size,
        )
        params = LanguageModel(config, self.vocabulary_size).init(random.key(seed))
        output = output_layer(params)
        output = output._replace(w=output.w * _OUTPUT_SCALE)
        layers = params.layers
        if self.cell == "gru":
            layers = tuple(layer._replace(b_hn=layer.b_hn * 0) for layer in layers)
        return params._replace(layers=layers, output=output)


@dataclass(frozen=True)
class Job:
    """What is asked for when sampling is measured: texts side by side that go on from prompts.

    Attributes:
        batch: B, how many texts.
        prompt_length: tokens that each begins with, at least 1.
        places: tokens that are written to each.
        temperature: 0 takes the most likely token.
        top_n: how many of the most likely tokens may be drawn; 0 for all.
    """

    batch: int
    prompt_length: int
    places: int
    temperature: float = 1.0
    top_n: int = 0

    def prompts(self, system: System, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Random tokens, int32 `[prompt_length, B]`."""
        draw = np.random.default_rng(seed)
        shape = (self.prompt_length, self.batch)
        return draw.integers(0, system.vocabulary_size, shape, dtype=np.int32)


SYSTEMS = (
    System("lyrics", 1027, "lstm", 1, 256, batch_size=32, sequence_length=35, clip_norm=0.01),
    System("lyrics-gru", 1027, "gru", 1, 256, batch_size=32, sequence_length=35, clip_norm=0.01),
    System("shakespeare", 8009, "lstm", 1, 128, 100, 50, embedding_size=128),
    System("anna", 83, "lstm", 2, 512, batch_size=100, sequence_length=100, dropout=0.5),
)


def system_named(name: str) -> System:
    """The system of that name.

    Raises:
        ValueError: there is none.
    """
    for system in SYSTEMS:
        if system.name == name:
            return system
    names = ", ".join(system.name for system in SYSTEMS)
    raise ValueError(f"there is no system {name!r}; choose from {names}")

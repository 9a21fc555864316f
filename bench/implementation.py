"""What the benches ask of ours and of every peer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from bench.shapes import (
    PEERS_CELLS,
    AnyParams,
    AnySystem,
    DType,
    Job,
    LayerShape,
    LayerWork,
    System,
)
from lstm_jax.models import LanguageModelParams


class _Built(Protocol):
    @property
    def settings(self) -> Mapping[str, str]:
        """What was chosen to make it fast."""


class Training(_Built, Protocol):
    """A network in training, on the system's batches in order, from the weights it was given."""

    @property
    def parameters(self) -> int:
        """How many numbers are trained, without those its cell has beyond ours by definition."""

    def loss(self) -> float:
        """Mean loss of the epoch's first batch, in nats, from a zero carry, without dropout."""

    def step(self) -> None:
        """Trains on the next batch: forward, backward, clip, Adam; returns when all is done."""


class LayerPass(_Built, Protocol):
    """A layer over time, forward and backward, on the work it was given."""

    def run(self) -> None:
        """Outputs, and all gradients; returns when all is done."""

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """By our names and in our shapes: of xs, the carry's parts and each of our weights.

        What the implementation has no such weight for is left out.
        """


class Sampling(_Built, Protocol):
    """A network that writes what it was asked for, from the weights it was given."""

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Absorbs the prompts from a zero carry and writes: tokens `[places, B]`, on the host."""


class Implementation:
    """Ours or a peer; a method raises ValueError for what it has not, or cannot run here.

    Attributes:
        cells: of which it has layers.
    """

    cells: tuple[str, ...] = PEERS_CELLS

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        """The system, with these weights, in training."""
        raise ValueError(f"no {system.name} is built for it")

    def layer(self, shape: LayerShape, dtype: DType, work: LayerWork) -> LayerPass:
        """A bare layer."""
        raise ValueError("no layer is built for it")

    def sampling(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> Sampling:
        """The system, its weights stored in `dtype`, writing."""
        raise ValueError("no sampling is built for it")

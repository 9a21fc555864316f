"""Other libraries that train and sample the same networks, one per file.

Each file has a class `Peer`, an `Implementation`, and imports its library on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from itertools import product
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bench.shapes import (
    PEERS_CELLS,
    AnyParams,
    AnySystem,
    DType,
    Job,
    LayerShape,
    StoredDType,
    System,
)
from bench.workers import Built, NotRun
from lstm_jax.cli.devices import splitting
from lstm_jax.models import LanguageModelParams

OURS = "lstm_jax"
"""Prefix of our implementations' names."""

PEERS = {
    "pytorch": "bench.peers.pytorch",
    "flax-nnx": "bench.peers.flax_nnx",
    "keras": "bench.peers.keras_jax",
    "equinox": "bench.peers.equinox",
}
"""Name and module."""

ON_DEVICES = {"jax-rnn": "bench.peers.jax_rnn"}
"""Additional peers of `bench device`."""

SAMPLING_PEERS = ("pytorch", "flax-nnx")

Kind = Literal["training", "layer", "sampling"]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class Training(NamedTuple):
    """A network in training, on the system's batches in order, from given weights.

    Attributes:
        step: train on the next batch (forward, backward, clip, Adam), or on `times` batches, and
            wait for the result.
        loss: mean loss of the epoch's first batch in nats, from a zero carry, without dropout.
        parameters: number of trained parameters, without those of its cell that ours lacks.
        settings: settings chosen for speed.
    """

    step: Callable[..., object]
    loss: Callable[[], float]
    parameters: int
    settings: Mapping[str, str]


class LayerPass(NamedTuple):
    """A layer's forward and backward pass over time.

    Attributes:
        run: compute outputs and all gradients, once or `times` times, and wait for them.
        forward: the same for the outputs alone.
        gradients: outputs (ys) and gradients of xs, the parts of the carry and our weights, in our
            names and shapes, except for weights that the implementation lacks.
        outputs: the result of `forward`, in our shape.
        settings: settings chosen for speed.
    """

    run: Callable[..., object]
    forward: Callable[..., object]
    gradients: Callable[[], Arrays]
    outputs: Callable[[], np.ndarray[Any, Any]]
    settings: Mapping[str, str]


class Implementation:
    """Ours or a peer; methods raise ValueError for what it lacks or cannot run here.

    Attributes:
        cells: cells for which it has layers.
    """

    cells: tuple[str, ...] = PEERS_CELLS

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        """The system, with these weights, in training."""
        raise ValueError(f"no {system.name} is built for it")

    def layer(self, shape: LayerShape, dtype: DType) -> LayerPass:
        """A bare layer."""
        raise ValueError("no layer is built for it")

    def poison(self, shapes: Iterable[tuple[int, ...]]) -> None:
        """Write NaNs to free memory of the device where arrays of these shapes would go."""
        arrays = [np.full(shape, np.nan, np.float32) for shape in shapes]
        jax.block_until_ready(jax.device_put(arrays))

    def sampling(
        self, system: System, dtype: StoredDType, params: LanguageModelParams, job: Job
    ) -> Built:
        """The system generating text, with its weights stored in `dtype`.

        Its call "write" prefills the prompts from a zero carry and decodes int32 tokens
        `[places, B]`, returned on the host.
        """
        raise ValueError("no sampling is built for it")


class Candidate(NamedTuple):
    """One way to run an implementation; the fastest of several counts.

    Its name in the rows is empty if it is the only one. Options go to the implementation's class,
    variables into the environment of its process.
    """

    name: str = ""
    options: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


ONLY = Candidate()


def candidates(name: str, kind: Kind, cpu_cores: int) -> list[Candidate]:
    """Ways to run an implementation for this kind of work, the usual one first.

    `cpu_cores` is the number of cores it may use; 0 if it runs on an accelerator.
    """
    if name == OURS and kind == "training" and cpu_cores > 1:
        one = Candidate("one device", {"devices": 1})
        each = Candidate("a device a core", {"devices": cpu_cores}, splitting(cpu_cores))
        return [one, each]
    if name == "keras":
        return [Candidate(environment={"KERAS_BACKEND": "jax"})]
    if name != "pytorch":
        return [ONLY]
    # oneDNN reorders weights at every call, and threads wait for each other; for small layers
    # either takes longer than the step itself.
    found = [
        Candidate(
            f"threads {threads}, oneDNN {'on' if onednn else 'off'}",
            {"threads": threads, "onednn": onednn},
        )
        for threads, onednn in product(sorted({1, cpu_cores}, reverse=True), (True, False))
    ]
    found = found if cpu_cores else [Candidate("eager")]
    return found if kind == "sampling" else [*found, Candidate("torch.compile", {"compiled": True})]


def require_peers(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError if a name is unknown."""
    for name in names:
        if name not in known:
            raise ValueError(f"there is no peer {name!r}; choose from {', '.join(known)}")


def load(name: str, options: Mapping[str, Any]) -> Implementation:
    """Import ours or a peer with its library; raises NotRun if that is not installed."""
    module = "bench.ours" if name.startswith(OURS) else {**PEERS, **ON_DEVICES}[name]
    try:
        peer: Implementation = import_module(module).Peer(**options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("bench", "lstm_jax"):
            raise
        raise NotRun(f"{error.name} is not installed") from error
    return peer

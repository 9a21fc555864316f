"""Other libraries that train and sample the same networks, one per file.

Each file has a class `Peer`, an `Implementation`, and imports its library on import.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np

from bench import shapes
from bench.shapes import AnyParams, AnySystem, DType, StoredDType, System
from bench.workers import Built, NotRun
from lstm_jax.cli.flags import splitting
from lstm_jax.models import LanguageModelParams

OURS = "lstm_jax"  # Prefix of our implementations' names.

PEERS = {
    "pytorch": "bench.peers.pytorch",
    "flax-nnx": "bench.peers.flax_nnx",
    "keras": "bench.peers.keras_jax",
    "equinox": "bench.peers.equinox",
}
"""Name and module."""

ON_DEVICES = {"jax-rnn": "bench.peers.jax_rnn"}  # Additional peers of `bench device`.
SAMPLING_PEERS = ("pytorch", "flax-nnx")

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Training(NamedTuple):
    """A network in training, on the system's batches in order, from given weights."""

    #: train on the next batch (forward, backward, clip, Adam), or on `times` batches, and wait for
    #: the result.
    step: Callable[..., object]
    #: mean loss of the epoch's first batch in nats, from a zero carry, without dropout.
    loss: Callable[[], float]
    parameters: int  # number of trained parameters, without those of its cell that ours lacks.
    settings: Mapping[str, str]  # settings chosen for speed.


class LayerPass(NamedTuple):
    """A layer's forward and backward pass over time."""

    #: compute outputs and all gradients, once or `times` times, and wait for them.
    run: Callable[..., object]
    forward: Callable[..., object]  # the same for the outputs alone.
    #: outputs (ys) and gradients of xs, the parts of the carry and our weights, in our names and
    #: shapes, except for weights that the implementation lacks.
    gradients: Callable[[], Arrays]
    outputs: Callable[[], np.ndarray[Any, Any]]  # the result of `forward`, in our shape.
    settings: Mapping[str, str]  # settings chosen for speed.


class Implementation:
    """Ours or a peer; methods raise ValueError for what it lacks or cannot run here."""

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        raise ValueError(f"no {system.name} is built for it")

    def layer(self, shape: shapes.LayerShape, dtype: DType) -> LayerPass:
        raise ValueError("no layer is built for it")

    def poison(self, shapes: Iterable[tuple[int, ...]]) -> None:
        """Write NaNs to free memory of the device where arrays of these shapes would go."""
        arrays = [np.full(shape, np.nan, np.float32) for shape in shapes]
        jax.block_until_ready(jax.device_put(arrays))

    def sampling(
        self, system: System, dtype: StoredDType, params: LanguageModelParams, job: shapes.Job
    ) -> Built:
        """The system generating text, with its weights stored in `dtype`.

        Its call "write" prefills the prompts from a zero carry and decodes int32 tokens
        `[places, B]`, returned on the host.
        """
        raise ValueError("no sampling is built for it")


class Candidate(NamedTuple):
    """One way to run an implementation; the fastest of several counts."""

    name: str = ""  # in the rows; empty if it is the only one.
    options: Mapping[str, Any] = {}  # of the implementation's class.
    environment: Mapping[str, str] = {}  # variables of its process.


ONLY = Candidate()


def candidates(name: str, bench: str, cpu_cores: int) -> list[Candidate]:
    """Ways to run a benchmark, the usual one first; no `cpu_cores` means an accelerator."""
    if name == OURS and bench != "sample" and cpu_cores > 1:
        one = Candidate("one device", {"devices": 1})
        each = Candidate("a device a core", {"devices": cpu_cores}, splitting(cpu_cores))
        return [one, each]
    if name != "pytorch":
        return [ONLY]
    # oneDNN reorders weights at every call, and threads wait for each other; for small layers
    # either takes longer than the step itself.
    found = [] if cpu_cores else [Candidate("eager")]
    for threads in sorted({1, cpu_cores}, reverse=True) if cpu_cores else ():
        for name, onednn in (("on", True), ("off", False)):
            options = {"threads": threads, "onednn": onednn}
            found.append(Candidate(f"threads {threads}, oneDNN {name}", options))
    return found if bench == "sample" else [*found, Candidate("torch.compile", {"compiled": True})]


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

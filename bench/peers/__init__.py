"""Other libraries that train and sample the same networks, each in a file of its own.

A file has a class `Peer` with the methods of `bench.implementation.Implementation`, and imports its
library when it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import product
from typing import Any, Literal, NamedTuple

from bench.implementation import Implementation
from bench.workers import NotRun
from lstm_jax.cli.devices import splitting

OURS = "lstm_jax"
"""What our implementations' names begin with."""

PEERS = {
    "pytorch": "bench.peers.pytorch",
    "flax-nnx": "bench.peers.flax_nnx",
    "keras": "bench.peers.keras_jax",
    "equinox": "bench.peers.equinox",
}
"""Name and module."""

SAMPLING_PEERS = ("pytorch", "flax-nnx")
"""Those that write."""

Kind = Literal["training", "layer", "sampling"]


class Candidate(NamedTuple):
    """A way to run an implementation, of several of which the fastest counts.

    Its name in the rows is empty where it is the only one; the options go to the implementation's
    class, the variables into the environment of its process.
    """

    name: str = ""
    options: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


ONLY = Candidate()


def candidates(name: str, kind: Kind, cpu_cores: int) -> list[Candidate]:
    """The ways to run an implementation for this kind of work, the usual one first.

    `cpu_cores` is how many it may use; 0 where it runs on an accelerator.
    """
    if name == OURS and kind == "training" and cpu_cores > 1:
        one = Candidate("one device", {"devices": 1})
        each = Candidate("a device a core", {"devices": cpu_cores}, splitting(cpu_cores))
        return [one, each]
    if name == "keras":
        return [Candidate(environment={"KERAS_BACKEND": "jax"})]
    if name != "pytorch":
        return [ONLY]
    # oneDNN brings weights into its own form at every call, and threads wait for each other: of
    # small layers either takes longer than the step itself.
    found = [
        Candidate(
            f"threads {threads}, oneDNN {'on' if onednn else 'off'}",
            {"threads": threads, "onednn": onednn},
        )
        for threads, onednn in product(sorted({1, cpu_cores}, reverse=True), (True, False))
    ]
    found = found if cpu_cores else [Candidate("eager")]
    return found if kind == "sampling" else [*found, Candidate("torch.compile", {"compiled": True})]


def module_of(name: str) -> str:
    """Where an implementation is, ours or a peer; ValueError where there is none."""
    if name.startswith(OURS):
        return "bench.ours"
    require_peers([name])
    return PEERS[name]


def require_peers(names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Raises ValueError where a name is not among the known ones, by default all peers."""
    known = known or tuple(PEERS)
    for name in names:
        if name not in known:
            raise ValueError(f"there is no peer {name!r}; choose from {', '.join(known)}")


def load(module: str, options: Mapping[str, Any]) -> Implementation:
    """An implementation, its library imported; NotRun where that is not installed."""
    try:
        peer: Implementation = import_module(module).Peer(**options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("bench", "lstm_jax"):
            raise
        raise NotRun(f"{error.name} is not installed") from error
    return peer

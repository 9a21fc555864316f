"""Other libraries that train and sample the same networks, each in files of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from bench.implementation import Implementation, LayerImplementation, SamplingImplementation

P = TypeVar("P")

PEERS = {
    "pytorch": "bench.peers.pytorch",
    "flax-nnx": "bench.peers.flax_nnx",
    "keras": "bench.peers.keras_jax",
    "equinox": "bench.peers.equinox_cells",
}
"""Name and module; a module holds `PEER`, and imports its library when it is imported."""

SAMPLING_PEERS = {
    "pytorch": "bench.peers.pytorch_sampling",
    "flax-nnx": "bench.peers.flax_nnx_sampling",
}
"""The same for sampling."""

LAYER_PEERS = {
    "pytorch": "bench.peers.pytorch_layer",
    "flax-nnx": "bench.peers.flax_nnx_layer",
    "keras": "bench.peers.keras_layer",
    "equinox": "bench.peers.equinox_layer",
}
"""The same for bare layers."""


class MissingPeer(Exception):
    """A peer's library is not installed."""


def peer_named(name: str) -> Implementation:
    """The peer of that name that trains.

    Raises:
        ValueError: there is none.
        MissingPeer: its library is not installed.
    """
    peer: Implementation = _imported(PEERS, name)
    return peer


def sampling_peer_named(name: str) -> SamplingImplementation:
    """The peer of that name that samples.

    Raises:
        ValueError: there is none.
        MissingPeer: its library is not installed.
    """
    peer: SamplingImplementation = _imported(SAMPLING_PEERS, name)
    return peer


def layer_peer_named(name: str) -> LayerImplementation:
    """The peer of that name that runs a bare layer.

    Raises:
        ValueError: there is none.
        MissingPeer: its library is not installed.
    """
    peer: LayerImplementation = _imported(LAYER_PEERS, name)
    return peer


def require_peers(names: Sequence[str]) -> None:
    """Raises ValueError where a name is no peer's that trains."""
    for name in names:
        _require_known(PEERS, name)


def find_installed(
    names: Sequence[str], named: Callable[[str], P]
) -> tuple[list[P], dict[str, str]]:
    """The peers of these names, and why those that are missing are."""
    installed, missing = [], {}
    for name in names:
        try:
            installed.append(named(name))
        except MissingPeer as reason:
            missing[name] = str(reason)
    return installed, missing


def _imported(peers: Mapping[str, str], name: str) -> Any:
    _require_known(peers, name)
    try:
        return import_module(peers[name]).PEER
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("bench", "lstm_jax"):
            raise
        raise MissingPeer(f"{error.name} is not installed") from error


def _require_known(peers: Mapping[str, str], name: str) -> None:
    if name not in peers:
        raise ValueError(f"there is no peer {name!r}; choose from {', '.join(peers)}")

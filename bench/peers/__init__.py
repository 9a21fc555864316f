"""Other libraries that train the same networks, each in a file of its own."""

from __future__ import annotations

from importlib import import_module

from bench.implementation import Implementation

PEERS = {"pytorch": "bench.peers.pytorch", "flax-nnx": "bench.peers.flax_nnx"}
"""Name and module; a module holds `PEER`, and imports its library when it is imported."""


class MissingPeer(Exception):
    """A peer's library is not installed."""


def peer_named(name: str) -> Implementation:
    """The peer of that name.

    Raises:
        ValueError: there is none.
        MissingPeer: its library is not installed.
    """
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r}; choose from {', '.join(PEERS)}")
    try:
        peer: Implementation = import_module(PEERS[name]).PEER
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("bench", "lstm_jax"):
            raise
        raise MissingPeer(f"{error.name} is not installed") from error
    return peer

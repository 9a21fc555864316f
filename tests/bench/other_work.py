"""Tiny systems, and a peer that mixes up two gates: it costs the same, and is other work."""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from bench import ours
from bench.shapes import Classification, LayerShape, System
from bench.workers import Built, Server, Worker

TINY = System("tiny", 11, "lstm", 2, 8, batch_size=3, sequence_length=5, dropout=0.5)
GRU = System("tiny-gru", 11, "gru", 1, 8, 3, 5, embedding_size=4, clip_norm=0.01)
POEMS = System(
    *("tiny-poems", 11, "lstm", 1, 8, 3, 5),
    embedding_size=8,
    dropout=0.4,
    dropout_place="inputs",
    output_dropout=0.5,
    tied=True,
    carried=False,
)
REVIEWS = Classification(
    *("tiny-reviews", 60, 2, 8, 6, 5, 7, 4), dropout=0.2, word_dropout=0.4, dense_dropout=0.5
)
LSTM_LAYER, GRU_LAYER = LayerShape("lstm", 7, 3, 5, 8), LayerShape("gru", 7, 3, 5, 8)

_LIBRARIES = {"pytorch": "torch", "flax-nnx": "flax", "keras": "keras", "equinox": "equinox"}
INSTALLED = tuple(name for name, library in _LIBRARIES.items() if find_spec(library))


def named(*names: str) -> Any:
    """A test for each of these peers; Flax is a dependency, what needs another library is slow."""
    slow = pytest.mark.slow
    each = [n if n == "flax-nnx" else pytest.param(n, marks=slow) for n in names if n in INSTALLED]
    return pytest.mark.parametrize("name", each)


class Peer(ours.Peer):
    """Ours with two gates in each other's place; it says in which way it is to run."""

    def __init__(self, way: str = "other work") -> None:
        if way == "away":
            raise ValueError("not here")
        super().__init__()
        self.way = way

    def training(self, system: Any, dtype: Any, params: Any) -> Any:
        return super().training(system, dtype, _mixed(params))

    def sampling(self, system: Any, dtype: Any, params: Any, job: Any) -> Any:
        return super().sampling(system, dtype, _mixed(params), job)


def _mixed(params: Any) -> Any:
    return params._replace(layers=tuple(map(_mixed_layer, params.layers)))


def _mixed_layer(layer: Any) -> Any:
    size = layer.w_h.shape[0]
    order = np.r_[size : 2 * size, :size, 2 * size : layer.b.size]
    return layer._replace(w_x=layer.w_x[:, order], w_h=layer.w_h[:, order], b=layer.b[order])


class LocalWorker(Worker):
    """Does in this process what a worker does in its own."""

    def __init__(self, environment: Mapping[str, str], limit_s: float | None = None) -> None:
        self.server = Server()

    def answer(self, method: Callable[..., Any], *given: Any) -> Any:
        return self.server.answer(method, *given)

    def close(self) -> None:
        self.server.leave()


# Work that is none, so that a contest takes a moment


def way_of(peer: Any, *given: object) -> str:
    return getattr(peer, "way", "ours")


def build(peer: Any, *given: object) -> Built:
    way = way_of(peer)
    if way == "unlucky":
        raise RuntimeError("out of luck")
    return Built({"step": lambda: time.sleep(0.02 if way == "slow" else 1e-3)}, {"way": way})

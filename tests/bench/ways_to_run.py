"""A peer with three ways to run: slow, fast, and one that cannot."""

from __future__ import annotations

import time
from typing import Any

from bench import ours


class Peer(ours.Peer):
    """Ours, with a wait."""

    def __init__(self, way: str = "fast") -> None:
        if way == "none":
            raise ValueError("not here")
        self._wait = 0.1 if way == "slow" else 0.0

    def training(self, system: Any, dtype: Any, params: Any) -> Any:
        training: Any = super().training(system, dtype, params)
        step = training.step
        training.step = lambda: (time.sleep(self._wait), step())
        return training

"""Timing of several calls in turns, so that a busy moment of the machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

Name = TypeVar("Name")

SECONDS_PER_VISIT = 0.25
_MOST_CALLS_PER_VISIT = 100


class Timing(NamedTuple):
    """Milliseconds of one call: the median, the tenth and the ninetieth percentile of `calls`."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int


class Visit:
    """A call, repeated for about a quarter of a second at each visit.

    It is called twice at once: the first time it compiles, the second tells how often it fits.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.first_s = seconds(call)
        self._expected = max(seconds(call), 1e-9)

    def __call__(self) -> list[float]:
        """Seconds of each call.

        Where more than one fits, the first is not counted: the caches, and another library's
        threads that still wait for work, would slow it.
        """
        wanted = int(min(max(1.0, SECONDS_PER_VISIT / self._expected), _MOST_CALLS_PER_VISIT))
        took = [seconds(self._call) for _ in range(wanted + (wanted > 1))]
        self._expected = min(self._expected, *took)  # what compiles at its third call, too
        return took[wanted > 1 :]


def take_turns(visits: Mapping[Name, Callable[[], list[float]]], rounds: int) -> dict[Name, Timing]:
    """Makes all visits in each of one round or more, which begin with another one in turn."""
    samples: dict[Name, list[float]] = {name: [] for name in visits}
    names = list(visits)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            samples[name] += visits[name]()
    return {name: timing_of(each) for name, each in samples.items()}


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def timing_of(samples: list[float]) -> Timing:
    p10, median, p90 = (1e3 * float(p) for p in np.percentile(samples, (10, 50, 90)))
    return Timing(median, p10, p90, len(samples))

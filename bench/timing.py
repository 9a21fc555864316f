"""Timing of several calls in turns, so that a busy moment of the machine affects all of them."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

Name = TypeVar("Name")

SECONDS_PER_VISIT = 0.25
_MOST_CALLS_PER_VISIT = 100


class Timing(NamedTuple):
    """Milliseconds of one call: median, tenth and ninetieth percentile of `calls` calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int


class Visit:
    """A call to repeat; it is called twice at first, to compile and to find how many calls fit."""

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call
        self.first_s = seconds(call)
        self._expected = max(seconds(call), 1e-9)

    def __call__(self, spend_s: float | None = None, least_s: float = 0.0) -> list[float]:
        """Seconds of each call, of about `spend_s` or a quarter of a second for all.

        If more than one fits, the first is not counted: caches, and another library's threads that
        still spin, would slow it. Calls shorter than `least_s` are repeated within one timing, by a
        number given as argument.
        """
        at_once = max(1, min(math.ceil(least_s / self._expected), _MOST_CALLS_PER_VISIT))
        call = partial(self._call, at_once) if at_once > 1 else self._call
        fit = (spend_s or SECONDS_PER_VISIT) / (at_once * self._expected)
        wanted = int(min(max(1.0, fit), _MOST_CALLS_PER_VISIT))
        took = [seconds(call) / at_once for _ in range(wanted + (wanted > 1))]
        self._expected = min(self._expected, *took)  # also if it compiles again at its third call
        return took[wanted > 1 :]


def take_turns(visits: Mapping[Name, Callable[[], list[float]]], rounds: int) -> dict[Name, Timing]:
    """Make all visits in each of at least one round; rounds start with different ones in turn."""
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

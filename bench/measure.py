"""Timing of several implementations side by side, so that a busy moment meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_SECONDS_PER_VISIT = 0.25
_MOST_CALLS_PER_VISIT = 100


@dataclass(frozen=True)
class Timing:
    """What one call took.

    Attributes:
        median_ms: milliseconds, the median of all timed calls.
        p10_ms: the tenth percentile.
        p90_ms: the ninetieth.
        calls: how many were timed.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Times the calls in rounds, in each of which every one has its turn.

    In a turn a call is repeated for about a quarter of a second. Where it fits more than once, the
    first is not counted: the caches, and another library's threads that still wait for work, would
    slow it. Each round begins with another call.

    Args:
        calls: by name; each returns when all of its work is done, and has compiled what it needs.
        rounds: how many, at least 1.

    Returns:
        A timing for each name.

    Raises:
        ValueError: no rounds are asked for.
    """
    require_at_least_one(rounds=rounds)
    warm = {name: seconds(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        start = turn % len(names) if names else 0
        for name in names[start:] + names[:start]:
            samples[name] += _visit(calls[name], warm[name])
    return {name: timing_of(samples[name]) for name in names}


def require_at_least_one(**counts: int) -> None:
    """Raises ValueError, with the name and the value, where one of the numbers is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def _visit(call: Callable[[], object], expected: float) -> list[float]:
    wanted = int(min(max(1.0, _SECONDS_PER_VISIT / max(expected, 1e-9)), _MOST_CALLS_PER_VISIT))
    if wanted == 1:
        return [seconds(call)]
    return [seconds(call) for _ in range(wanted + 1)][1:]


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def timing_of(samples: list[float]) -> Timing:
    """What a list of seconds says."""
    p10, median, p90 = (float(p) for p in np.percentile(samples, (10, 50, 90)))
    return Timing(1e3 * median, 1e3 * p10, 1e3 * p90, len(samples))

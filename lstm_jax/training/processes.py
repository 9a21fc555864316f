"""Communication between the processes of a run, outside of steps.

All processes must call these functions in the same order; a single process talks to itself.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lstm_jax.files import one_line

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes the log, samples and pictures."""
    return jax.process_index() == 0


class AnotherEndedError(RuntimeError):
    """Another process of the run has ended, so this one cannot continue."""


def gathered(text: str) -> list[str]:
    """Gather the texts of all processes in order; raises AnotherEndedError if one has ended."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    try:
        sizes = multihost_utils.process_allgather(np.int32(raw.size))
        if not (most := int(max(sizes))):
            return [""] * len(sizes)
        padded = np.zeros(1 << (most - 1).bit_length(), np.uint8)  # few sizes to compile
        padded[: raw.size] = raw
        found = multihost_utils.process_allgather(padded)
    except (ValueError, RuntimeError) as error:
        raise AnotherEndedError(one_line(error)) from None
    return [bytes(row[:size]).decode() for row, size in zip(found, sizes, strict=True)]


def together(work: Callable[[], object], *, first_only: bool = False) -> None:
    """Run `work` in all processes, or in the first one only; a failure in one is raised in all.

    A process that failed raises its own exception, the others ValueError.
    """
    failure: Exception | None = None
    if is_first() or not first_only:
        try:
            work()
        except Exception as error:
            failure = error
    reasons = gathered(one_line(failure) if failure else "")
    if failure:
        raise failure
    for process, reason in enumerate(reasons):
        if reason:
            raise ValueError(f"process {process}: {reason}")


def require_same(what: Mapping[str, str | bytes]) -> None:
    """Raise ValueError in all processes, naming what differs between them, if anything does."""
    for name, value in what.items():
        raw = value.encode() if isinstance(value, str) else value
        first, *others = gathered(hashlib.sha256(raw).hexdigest())
        strangers = [str(number) for number, each in enumerate(others, 1) if each != first]
        if strangers:
            raise ValueError(
                f"{name} differ between the processes: process {', '.join(strangers)} has others "
                "than process 0; start them all with the same"
            )

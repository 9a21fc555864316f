"""One case: what came of it, how long it took, how much memory it wanted."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Literal, Protocol

from lstm_jax.cli.arguments import error_line

SECONDS = 10.0
"""A case that takes longer is a finding."""

MEBIBYTES = 300
"""A case that makes the process larger by more is a finding."""


class Surface(Protocol):
    """Something that reads what a user gives."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def share(self) -> int:
        """How many of a hundred cases, about, are its own."""

    def run(self, rng: Random, place: Path) -> None:
        """Makes a case in an empty folder, and has it read.

        Raises:
            ValueError: it was refused.
            OSError: it was refused.
            BrokenLawError: it was taken, and something other than what is promised came of it.
        """


class BrokenLawError(Exception):
    """What is promised did not come true."""


class _TooLongError(BaseException):
    """Not an Exception: nobody in between is to take it for an error of the input."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        verdict: what it was.
        detail: the error's line where it was refused; of a finding, all that is known.
    """

    verdict: Literal["refused", "accepted", "finding"]
    detail: str = ""


def try_case(surface: Surface, seed: int, number: int, place: Path) -> Outcome:
    """Runs one case.

    Args:
        surface: whose.
        seed: of all cases.
        number: of this one; the same seed and number make the same case.
        place: an empty folder; what a case writes there is its own to clear away.
    """
    rng = random_of(seed, number)
    largest, began = _largest_mebibytes(), time.perf_counter()
    try:
        with _alarm(SECONDS), _silence():
            surface.run(rng, place)
        outcome = Outcome("accepted")
    except (ValueError, OSError) as error:
        outcome = _refusal(error)
    except (Exception, _TooLongError):
        outcome = Outcome("finding", traceback.format_exc(limit=-6))
    seconds, grown = time.perf_counter() - began, _largest_mebibytes() - largest
    if seconds > SECONDS:
        return Outcome("finding", f"it took {seconds:.1f} s; {outcome.detail}")
    if grown > MEBIBYTES:
        return Outcome("finding", f"it took {grown:.0f} MiB of memory; {outcome.detail}")
    return outcome


def random_of(seed: int, number: int | str) -> Random:
    """The generator of a case."""
    return Random(f"{seed}/{number}")


def require(promise: bool, broken: str) -> None:
    """Raises BrokenLawError unless what is promised is true."""
    if not promise:
        raise BrokenLawError(broken)


def require_only(place: Path, *names: str) -> None:
    """Raises BrokenLawError if a folder holds something besides these."""
    require(set(os.listdir(place)) <= set(names), f"files appeared: {os.listdir(place)}")


@contextlib.contextmanager
def limited_memory(mebibytes: int) -> Iterator[None]:
    """Allows this process so much more address space than it has: a bomb ends as a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _refusal(error: ValueError | OSError) -> Outcome:
    """A clean one names what is wrong in one line; a codec's own words are not the project's."""
    line = error_line(error)
    if isinstance(error, UnicodeError) or not line:
        where = "".join(traceback.format_exception(error, limit=-6))
        return Outcome("finding", f"not a line of the project's: {where[-3_000:]}")
    return Outcome("refused", line)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLongError(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _largest_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

"""What Orbax's threads, and TensorStore below them, still do once a save or a read has failed."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
from pathlib import Path

_WAITS, _SECONDS_A_WAIT = 200, 0.05
_ABSENT_FOR_GOOD = 4
"""Waits after which a folder that was deleted is taken not to come back."""


def wait_for_orbax() -> None:
    """Waits for its threads, and until TensorStore works for no event loop that it has closed."""
    _join_threads()
    for _ in range(_WAITS):
        gc.collect()  # of tasks that are done, which print when they go
        if not _has_futures_of_closed_loops():
            return
        time.sleep(_SECONDS_A_WAIT)


def remove_for_good(folder: Path) -> None:
    """Deletes what a save that failed has left, until nothing of it comes back for a while.

    Threads of TensorStore's may still be adding files to it, and make its folders again.
    """
    absent = 0
    for _ in range(_WAITS):
        absent = 0 if folder.exists() else absent + 1
        if absent > _ABSENT_FOR_GOOD:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_SECONDS_A_WAIT)


def _join_threads() -> None:
    """By a function of its own: a thread that somebody still names keeps its futures alive."""
    for thread in threading.enumerate():
        if type(thread).__module__.partition(".")[0] == "orbax":
            # Not its own `join`, which raises what the thread ended with.
            threading.Thread.join(thread, _WAITS * _SECONDS_A_WAIT)


def _has_futures_of_closed_loops() -> bool:
    """Whether TensorStore is still at work for an event loop that Orbax has closed."""
    futures = (each for each in gc.get_objects() if issubclass(type(each), asyncio.Future))
    return any(future.get_loop().is_closed() for future in futures)

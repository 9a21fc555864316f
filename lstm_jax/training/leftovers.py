"""Wait for Orbax's threads and TensorStore after a failed save or read, and clean up after them."""

import asyncio
import gc
import shutil
import threading
import time
from pathlib import Path

_WAITS, _SECONDS_A_WAIT = 200, 0.05
_ABSENT_FOR_GOOD = 4
"""Number of waits after which a deleted folder is assumed not to reappear."""


def wait_for_orbax() -> None:
    """Wait for Orbax's threads, and for TensorStore's work on event loops that Orbax closed."""
    _join_threads()
    for _ in range(_WAITS):
        gc.collect()  # done tasks print when they are collected
        if not _has_futures_of_closed_loops():
            return
        time.sleep(_SECONDS_A_WAIT)


def remove_for_good(folder: Path) -> None:
    """Delete the remains of a failed save until they no longer reappear.

    TensorStore's threads may still be adding files and recreating folders.
    """
    absent = 0
    for _ in range(_WAITS):
        absent = 0 if folder.exists() else absent + 1
        if absent > _ABSENT_FOR_GOOD:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_SECONDS_A_WAIT)


def _join_threads() -> None:
    """Join in a separate function: any variable that names a thread keeps its futures alive."""
    for thread in threading.enumerate():
        if type(thread).__module__.partition(".")[0] == "orbax":
            # Not the subclass's `join`, which raises the thread's exception.
            threading.Thread.join(thread, _WAITS * _SECONDS_A_WAIT)


def _has_futures_of_closed_loops() -> bool:
    """Whether TensorStore is still working for an event loop that Orbax has closed."""
    futures = (each for each in gc.get_objects() if issubclass(type(each), asyncio.Future))
    return any(future.get_loop().is_closed() for future in futures)

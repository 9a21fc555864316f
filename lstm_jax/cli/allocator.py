"""The C library's allocator, told to keep the memory that a step frees for the next step.

A step on CPU takes and frees the same large arrays each time. By default glibc hands each back to
the kernel, which zeroes it and maps it in anew, page by page, at the next step: that is up to
half the time of a small layer's forward and backward pass.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1
_SMALL_STATE = 2**14


def keep_memory_of_steps(rows: int, hidden_size: int) -> bool:
    """As `keep_freed_memory`, for steps on so many rows a device; JAX must not have started.

    Those of at most 16,384 numbers in a hidden state need less than 64 MB at once, and get a second
    arena.
    """
    return keep_freed_memory(2 if rows * hidden_size <= _SMALL_STATE else 1)


def keep_freed_memory(arenas: int = 1) -> bool:
    """Make glibc keep freed memory for reuse; call this before any large allocation.

    Threads share so many arenas; it counts until the first of them takes memory. They wait for each
    other at a single one, which costs small steps on two devices a sixth of their time. But of
    several, all but the main thread's give back what is above 64 MB.

    Returns whether it took effect: on Linux with glibc, unless the environment has settings of the
    user's own (`MALLOC_...` or `GLIBC_TUNABLES`), which are left as they are.
    """
    has_own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if has_own or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {
        _MMAP_THRESHOLD: _LARGEST,
        _TRIM_THRESHOLD: _LARGEST,
        _TOP_PAD: 64 * 2**20,
        _ARENA_MAX: arenas,
    }
    return all([mallopt(parameter, value) for parameter, value in settings.items()])

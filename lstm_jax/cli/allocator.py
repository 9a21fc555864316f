"""The C library's allocator, told to keep the memory that a step frees for the next step.

A step on CPU takes and frees the same large arrays each time. By default glibc hands each back to
the kernel, which zeroes it and maps it in anew, page by page, at the next step: that is up to
half the time of a small layer's forward and backward pass.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1
# All threads share one arena, since the others give back what is larger than theirs can hold.
_SETTINGS = {
    _ARENA_MAX: 1,
    _MMAP_THRESHOLD: _LARGEST,
    _TRIM_THRESHOLD: _LARGEST,
    _TOP_PAD: 64 * 2**20,
}


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for reuse; call this before any large allocation.

    Returns:
        Whether it took effect: on Linux with glibc, unless the environment has settings of the
        user's own (`MALLOC_...` or `GLIBC_TUNABLES`), which are left as they are.
    """
    has_own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if has_own or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all([bool(mallopt(parameter, value)) for parameter, value in _SETTINGS.items()])

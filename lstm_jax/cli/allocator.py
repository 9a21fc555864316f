"""Make the C library's allocator keep the memory that a step frees for the next step.

On CPU every step allocates and frees the same large arrays. By default glibc returns each to the
kernel, which zeroes and maps it again, page by page, in the next step; this takes up to half the
time of a small layer's forward and backward pass.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**31 - 1
_SMALL_STATE = 2**14


def keep_memory_of_steps(rows: int, hidden_size: int) -> bool:
    """Call `keep_freed_memory` for steps on `rows` rows per device; JAX must not have started.

    With at most 16,384 numbers in a hidden state they need under 64 MB, and get a second arena.
    """
    return keep_freed_memory(2 if rows * hidden_size <= _SMALL_STATE else 1)


def keep_freed_memory(arenas: int = 1) -> bool:
    """Make glibc keep freed memory for reuse; call this before any large allocation.

    Threads share `arenas` arenas, a number that is fixed once the first of them allocates. With one
    they wait for each other, which costs small steps on two devices a sixth of their time; with
    several, all but the main thread's arena return memory above 64 MB.

    Returns whether it took effect: on Linux with glibc, unless the user has set `MALLOC_...` or
    `GLIBC_TUNABLES`, which are respected.
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

"""XLA's flags for a CPU, which count only if they are set before JAX starts."""

import os

SPLITTING = "--xla_force_host_platform_device_count"
_EXTRA = "--xla_backend_extra_options"
_LARGEST_ITERATION = 2 * 2**20


def compile_loops_whole() -> bool:
    """Make XLA compile small loops as one function each; JAX must not have started.

    By default jax 0.10 runs a loop as a series of kernels, and jax 0.12 compiles any it can whole.
    This concerns loops over time for one sequence, whose products are of vectors. In small ones
    starting the kernels takes up to half of the time. But a product of more than about 2 MB uses
    several cores, which it cannot inside a function. So this sets the limit of an iteration to
    2 MB, or to none if there is one core.

    Returns whether it took effect: unless the user has set extra options, which are respected.
    """
    if _EXTRA in os.environ.get("XLA_FLAGS", ""):
        return False
    limit = _LARGEST_ITERATION if available_cores() > 1 else 2**40
    os.environ |= with_flags(f"{_EXTRA}=xla_cpu_small_while_loop_byte_threshold={limit}")
    return True


def splitting(devices: int) -> dict[str, str]:
    """Environment variables that split a CPU into `devices` devices, each with one thread."""
    return with_flags(f"{SPLITTING}={devices}", "--xla_cpu_multi_thread_eigen=false")


def with_flags(*flags: str) -> dict[str, str]:
    """Environment variables with these flags after those already set."""
    return {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()}


def available_cores() -> int:
    """Number of cores this process may use."""
    is_linux = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1

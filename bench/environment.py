"""What a measurement ran on: device, processor, threads, versions, load and date."""

from __future__ import annotations

import datetime
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import jax

_PACKAGES = ("lstm-jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "keras", "equinox")
_VARIABLES = ("XLA_FLAGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES",
              "MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_MMAP_THRESHOLD_",
              "MALLOC_TRIM_THRESHOLD_")  # fmt: skip
_BUSY_SHARE = 0.25


@dataclass(frozen=True)
class Environment:
    """What a measurement ran on, and on which day in UTC.

    Attributes:
        threads: cores of this process, and the variables that change what is made of them.
        load: the host's load average of the last minute, what other programs ask for included.
    """

    device: str
    processor: str
    threads: dict[str, str]
    versions: dict[str, str]
    load: float
    date: str

    @property
    def is_busy(self) -> bool:
        """Whether other programs take a share of the cores that would distort the ratios."""
        return self.load > _BUSY_SHARE * int(self.threads["cores"])


@cache
def environment() -> Environment:
    """Where this process runs; its load is that of when it is first asked."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return Environment(
        device=f"cpu ({_processor()})" if on_cpu else f"{device.platform} ({device.device_kind})",
        processor=_processor(),
        threads={"cores": str(cores())} | variables,
        versions={"python": platform.python_version()} | _versions(),
        load=round(os.getloadavg()[0], 2),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_cores() -> int:
    """The same where jax computes on the CPU; 0 where it has an accelerator."""
    return cores() if jax.default_backend() == "cpu" else 0


@cache
def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found

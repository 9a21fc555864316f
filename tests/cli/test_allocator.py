"""Memory that a step frees is there for the next one."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import numpy as np
from lstm_jax.cli.allocator import keep_freed_memory

kept = keep_freed_memory()

def step():
    arrays = [np.ones(20_000_000, np.uint8) for _ in range(5)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PAGES = 100_000_000 // os.sysconf("SC_PAGE_SIZE")


def _step_again(variables: dict[str, str]) -> tuple[bool, int]:
    inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment = {k: v for k, v in inherited.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_takes_the_pages_that_the_one_before_it_freed() -> None:
    kept, faults = _step_again({})
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert faults < _PAGES // 100


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")],
)
def test_settings_of_the_users_own_are_left_as_they_are(name: str, value: str) -> None:
    kept, _ = _step_again({name: value})
    assert not kept

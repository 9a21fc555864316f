"""Memory that a step frees is there for the next one."""

import os
import subprocess
import sys

import pytest

from lstm_jax.cli.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
OWN = ("MALLOC_", "GLIBC_TUNABLES")
PROGRAM = """
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


def test_a_step_takes_the_pages_that_the_one_before_it_freed() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OWN)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(faults) < 100_000_000 // os.sysconf("SC_PAGE_SIZE") // 100


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_users_own_are_left_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in (each for each in os.environ if each.startswith(OWN)):
        monkeypatch.delenv(own)
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory()

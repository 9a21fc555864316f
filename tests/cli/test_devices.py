"""How many devices a command takes: each case in a process where JAX has not started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

CHOICE = """
import json, os, sys
asked, hidden_size, batch_size, is_asked, cores = json.loads(sys.argv[1])
if cores is not None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from lstm_jax.cli.devices import chosen_devices
from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems.language import LanguageConfig
model = LanguageModelConfig(hidden_size=hidden_size)
config = LanguageConfig(devices=asked, batch_size=batch_size, model=model)
chosen = chosen_devices(config, is_asked=is_asked)
import jax
print(json.dumps([chosen, jax.local_device_count()]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be taken away here")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
@pytest.mark.parametrize(
    ("case", "environment", "expected"),
    [
        (("auto", 64, 8, False, 2), {}, [2, 2]),  # one a core where states are small
        (("auto", 65, 8, False, 2), {}, [1, 1]),
        (("auto", 64, 7, False, 2), {}, [1, 1]),  # the batch does not divide
        (("auto", 64, 8, False, 2), {"JAX_NUM_CPU_DEVICES": "2"}, [1, 2]),  # the user has split it
        ((2, 128, 8, True, 2), {}, [2, 2]),  # what is asked for is made
        ((2, 64, 8, False, 1), {}, [1, 1]),  # a run that is resumed where there are fewer cores
        ((2, 64, 8, True, 1), {"JAX_NUM_CPU_DEVICES": "2"}, [2, 2]),  # more devices than cores
        ((4, 64, 8, True, 1), {"JAX_NUM_CPU_DEVICES": "2"}, [4, 2]),  # too many, as refused later
        # What is asked for in vain names the cores and the way to more.
        ((2, 64, 8, True, 1), {}, "devices is 2.*there are 1.*1 at most.*JAX_NUM_CPU_DEVICES=2"),
        ((4, 64, 8, True, 2), {}, "devices is 4.*there are 2.*2 at most.*JAX_NUM_CPU_DEVICES=4"),
    ],
)
def test_devices_are_those_that_pay(
    case: tuple[Any, ...], environment: dict[str, str], expected: list[int] | str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", CHOICE, json.dumps(case)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    if isinstance(expected, str):
        assert re.search(f"ValueError: {expected}", done.stderr)
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected

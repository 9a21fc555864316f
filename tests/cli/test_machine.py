"""What a command takes of the machine: devices, processes, memory that is freed and kept."""

import json
import os
import re
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import pytest
from commands import Refusal

from lstm_jax.cli.allocator import keep_freed_memory
from lstm_jax.cli.flags import available_cores
from lstm_jax.cli.main import train_command

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
TWO_STEPS = """
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
ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES")
TWO_CORES = pytest.mark.skipif(available_cores() < 2, reason="there is one core")


def ran(program: str, *arguments: str, without: tuple[str, ...], **variables: str) -> Any:
    """A program in a process of its own, where JAX has not started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be taken away here")
@TWO_CORES
@pytest.mark.parametrize(
    ("case", "split", "expected"),
    [
        (("auto", 64, 8, False, 2), None, [2, 2]),  # one a core where states are small
        (("auto", 65, 8, False, 2), None, [1, 1]),
        (("auto", 64, 7, False, 2), None, [1, 1]),  # the batch does not divide
        (("auto", 64, 8, False, 2), "2", [1, 2]),  # the user has split it
        ((2, 128, 8, True, 2), None, [2, 2]),  # what is asked for is made
        ((2, 64, 8, False, 1), None, [1, 1]),  # a run that is resumed where there are fewer cores
        ((2, 64, 8, True, 1), "2", [2, 2]),  # more devices than cores
        ((4, 64, 8, True, 1), "2", [4, 2]),  # too many, as refused later
        # What is asked for in vain names the cores and the way to more.
        ((2, 64, 8, True, 1), None, "devices is 2.*there are 1.*1 at most.*JAX_NUM_CPU_DEVICES=2"),
        ((4, 64, 8, True, 2), None, "devices is 4.*there are 2.*2 at most.*JAX_NUM_CPU_DEVICES=4"),
    ],
)
def test_devices_are_those_that_pay(
    case: tuple[Any, ...], split: str | None, expected: list[int] | str
) -> None:
    variables = {"JAX_NUM_CPU_DEVICES": split} if split else {}
    done = ran(CHOICE, json.dumps(case), without=("XLA_FLAGS",), **variables)
    if isinstance(expected, str):
        assert re.search(f"ValueError: {expected}", done.stderr)
    else:
        assert json.loads(done.stdout) == expected, done.stderr


LOOPS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
from lstm_jax.cli.flags import compile_loops_whole
took = compile_loops_whole()
import jax, lstm_jax
params = lstm_jax.init_lstm(jax.random.key(0), 1, int(sys.argv[2]))
run = jax.jit(lambda params, xs: lstm_jax.lstm(params, None, xs)[1])
program = run.lower(params, jax.numpy.ones((5, 1, 1))).compile().as_text()
print(took, "xla_cpu_small_call" in program)
"""


NONE_SMALL = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=0"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be taken away here")
@pytest.mark.parametrize(
    ("cores", "hidden_size", "flags", "expected"),
    [
        ("1", "64", "", "True True"),
        ("1", "64", NONE_SMALL, "False False"),  # the user's options are kept
        ("1", "400", "", "True True"),
        # The product with over 2 MB of weights takes both cores.
        pytest.param("2", "400", "", "True False", marks=TWO_CORES),
        pytest.param("2", "64", "", "True True", marks=TWO_CORES),
    ],
)
def test_loops_for_one_sequence_are_compiled_whole(
    cores: str, hidden_size: str, flags: str, expected: str
) -> None:
    done = ran(LOOPS, cores, hidden_size, without=("XLA_FLAGS",), XLA_FLAGS=flags)
    assert done.stdout.strip() == expected, done.stderr


TORCHRUN = {"MASTER_ADDR": "h", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("flags", "variables", "says"),
    [
        ("--process-id 1 --process-count 2", {}, "give --coordinator HOST:PORT"),
        ("--process-count 2", {}, "give --coordinator HOST:PORT"),
        ("--coordinator host", {}, "the coordinator is 'host'; give HOST:PORT"),
        ("--coordinator host:x", {}, "give HOST:PORT"),
        ("--coordinator h:1 --process-id 2 --process-count 2", {}, "--process-id is at most 1"),
        ("--coordinator h:1 --process-count 2", {}, "--process-id"),
        ("--coordinator h:1 --process-id 0", {}, "--process-count"),
        ("--process-count 0", {}, "at least 1"),
        ("--dead-timeout 0", {}, "at least 1"),
        ("", {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is 'one'; set it to a number"),
        ("", {"JAX_NUM_PROCESSES": "2"}, "give --coordinator HOST:PORT"),
        ("", {**TORCHRUN, "RANK": "2", "WORLD_SIZE": "2"}, "at most 1"),
        ("", {"MASTER_ADDR": "h", "MASTER_PORT": "x", "RANK": "0"}, "MASTER_PORT is 'x'"),
        # One process alone is one.
        ("--resume", {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, "never is not a run folder"),
        ("--resume", {**TORCHRUN, "SLURM_NTASKS": "1"}, "never is not a run folder"),
    ],
)
def test_which_of_several_processes_this_is_comes_from_flags_then_variables(
    flags: str, variables: dict[str, str], says: str, refusal: Refusal
) -> None:
    with patch.dict(os.environ, variables, clear=True):
        assert says in refusal(train_command, *flags.split(), "--run-dir", "never")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_takes_the_pages_that_the_one_before_it_freed() -> None:
    kept, faults = ran(TWO_STEPS, without=ALLOCATORS).stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(faults) < 100_000_000 // os.sysconf("SC_PAGE_SIZE") // 100


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_an_allocator_s_settings_of_the_user_s_own_are_left_as_they_are(name: str) -> None:
    with patch.dict(os.environ, {name: "131072"}, clear=True):
        assert not keep_freed_memory()

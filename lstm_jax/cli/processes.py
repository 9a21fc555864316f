"""Runs of several processes: how they find each other, and when they all end."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from lstm_jax.cli.console import START_AGAIN, START_ALL_AGAIN, leave, tell
from lstm_jax.files import one_line
from lstm_jax.settings import Checked, Count, CountOrZero

_ADDRESS, _COUNT, _NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclass(frozen=True)
class Launch(Checked):
    """Rank of this process among several."""

    #: HOST:PORT of the first of several processes, all started with the same command; found
    #: automatically under Slurm, Open MPI, Kubernetes or torchrun. "auto" lets JAX search for a
    #: cluster itself, as on a TPU pod.
    coordinator: str | None = None
    process_id: CountOrZero | None = None  # index of this process; the first is 0.
    process_count: Count | None = None  # number of processes.
    start_timeout: Count = 600  # seconds to wait for all processes to start.
    dead_timeout: Count = 10  # seconds without a heartbeat after which a process counts as dead.
    #: seconds without a step after which this process ends; 0 for never.
    stuck_timeout: CountOrZero = 600


@contextmanager
def joined(launch: Launch) -> Iterator[int]:
    """Join the other processes, if any, before JAX starts.

    Yields their number, or 0 if only the cluster knows it; raises ValueError if it lacks an option.
    """
    address, count, number, local = _found(launch)
    if address == "auto":
        address = None
    elif not _is_one_of_several(address, count, number):
        yield 1
        return
    # JAX would handle SIGTERM, which the training loop handles.
    jax.config.update("jax_enable_preemption_service", False)
    start = f"the processes did not find each other within {launch.start_timeout} s"
    reasons = [f"{start}; {START_ALL_AGAIN}, or with a longer --start-timeout"]

    # JAX aborts from a thread unknown to Python if processes are missing at the start, or the first
    # or any other dies; this makes it end with a message and its own exit code.
    def end(_: int) -> None:
        os.write(2, f"{reasons[-1]}\n".encode())
        os._exit(START_AGAIN)

    handler, libc = ctypes.CFUNCTYPE(None, ctypes.c_int)(end), ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, handler)
    try:
        jax.distributed.initialize(
            address, count, number, local_device_ids=local,
            initialization_timeout=launch.start_timeout,
            heartbeat_timeout_seconds=launch.dead_timeout,
        )  # fmt: skip
    except ValueError as error:
        libc.signal(signal.SIGABRT, None)
        raise ValueError(
            f"this is one of several processes, and JAX says: {error} Give --coordinator, "
            f"--process-id and --process-count, or set {_ADDRESS}, {_NUMBER} and {_COUNT}"
        ) from None
    except RuntimeError as error:
        tell(f"{reasons[0]} ({one_line(error, 200)})")
        leave(START_AGAIN)
    reasons.append(f"another process of this run ended, or is not heard of; {START_ALL_AGAIN}")
    yield count or 0
    jax.distributed.shutdown()  # waits for the others
    libc.signal(signal.SIGABRT, None)  # the default


@contextmanager
def watched(should_stop: Callable[[], bool], seconds: int) -> Iterator[Callable[[], bool]]:
    """Wrap what training asks after each step, and end the process if it stops asking.

    It ends after `seconds` without being asked; 0 means never.
    """
    asked = [time.monotonic()]
    is_over = threading.Event()

    def ask() -> bool:
        asked[0] = time.monotonic()
        return should_stop()

    def watch() -> None:
        while not is_over.wait(min(1, seconds / 10)):
            if time.monotonic() - asked[0] > seconds:
                tell(f"no step was done in {seconds} s, so a process is stuck; {START_ALL_AGAIN}")
                leave(START_AGAIN)

    if seconds:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield ask
    finally:
        is_over.set()


def _is_one_of_several(address: str | None, count: int | None, number: int | None) -> bool:
    """Whether there are other processes; raises ValueError if the information is incomplete."""
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"the coordinator is {address!r}; give HOST:PORT")
    if count == 1:
        return False
    is_one = address is not None or _is_cluster()
    if not is_one and (count, number) != (None, None):
        raise ValueError(f"this is process {number} of {count}; give --coordinator HOST:PORT, too")
    if address is not None and None in (count, number) and not _is_cluster():
        raise ValueError("give --process-id and --process-count with --coordinator")
    if is_one and count is not None and number is not None and number >= count:
        raise ValueError(f"there are {count} processes, so --process-id is at most {count - 1}")
    return is_one


def _found(launch: Launch) -> tuple[str | None, int | None, int | None, int | None]:
    """Address, number of processes, index, index on this host; flags take precedence."""

    def number(name: str) -> int | None:
        value = os.environ.get(name) or None
        if value is not None and not value.isdecimal():
            raise ValueError(f"{name} is {value!r}; set it to a number")
        return None if value is None else int(value)

    address = launch.coordinator or os.environ.get(_ADDRESS)
    local = None
    if address is None and {"MASTER_ADDR", "MASTER_PORT", "RANK"} <= {*os.environ}:  # torchrun's
        # torchrun itself listens at its port.
        address = f"{os.environ['MASTER_ADDR']}:{(number('MASTER_PORT') or 0) + 1}"
        local = number("LOCAL_RANK")
        count, this = number("WORLD_SIZE"), number("RANK")
    else:
        count, this = number(_COUNT), number(_NUMBER)
    count = count if launch.process_count is None else launch.process_count
    this = this if launch.process_id is None else launch.process_id
    return address, count, this, local


def _is_cluster() -> bool:
    """Whether a launcher known to JAX has started this as one of several processes."""
    there = os.environ
    return (
        ("SLURM_STEP_NODELIST" in there and there.get("SLURM_NTASKS", "1") != "1")
        or there.get("OMPI_COMM_WORLD_SIZE", "1") != "1"
        or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= {*there}
        or "," in there.get("TPU_WORKER_HOSTNAMES", "")
    )

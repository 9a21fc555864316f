"""Choose the number of devices, and configure JAX for it before it starts."""

import os
from collections.abc import Iterator

import jax

from lstm_jax.cli.allocator import keep_memory_of_steps
from lstm_jax.cli.flags import SPLITTING, available_cores, splitting
from lstm_jax.systems.base import TrainConfig

SMALL_HIDDEN_SIZE = 64


def chosen_devices(config: TrainConfig, processes: int = 1, *, is_asked: bool) -> int:
    """Choose the number of devices for these settings, and tell JAX, which must not have started.

    On CPU "auto" means one device per core, each with one thread, if hidden states have at most 64
    units, and otherwise one device, as XLA only uses several cores for large products. On GPU or
    TPU it means all devices. In either case the number divides the batch. If the user has split the
    processor (JAX_NUM_CPU_DEVICES, XLA_FLAGS), that is kept, and "auto" takes one device. Processes
    share the devices equally; on CPU "auto" means one for each.

    `processes` is their number, or 0 if unknown. With `is_asked` the user asks for this number now,
    and too few cores raise ValueError; a run resumed elsewhere takes what there is.
    """
    asked = None if config.devices == "auto" else config.devices
    processes = processes or jax.process_count()  # too late for flags, but such clusters need none
    cores = available_cores()
    hidden_size = config.model.hidden_size  # type: ignore[attr-defined]
    pays = hidden_size <= SMALL_HIDDEN_SIZE
    if processes == 1:
        wanted = asked or max(_divisors(config.batch_size, cores if pays else 1))
    else:
        wanted = asked // processes if asked and asked % processes == 0 else 1
    flags = (flag.partition("=")[0] for flag in os.environ.get("XLA_FLAGS", "").split())
    is_split = {"JAX_NUM_CPU_DEVICES", SPLITTING} & {*os.environ, *flags}
    keep_memory_of_steps(config.batch_size // wanted, hidden_size)
    if 1 < wanted <= cores and not is_split:
        os.environ |= splitting(wanted)
    if processes != 1:
        return asked if asked is not None and is_asked else jax.device_count()
    there = jax.local_device_count()
    is_cpu = jax.default_backend() == "cpu"
    if asked is not None and asked > max(there, cores) and is_asked and is_cpu and not is_split:
        raise ValueError(
            f"devices is {asked}, and a device takes a core, of which there are {cores}: give "
            f"{cores} at most here; JAX_NUM_CPU_DEVICES={asked} makes more devices than cores"
        )
    if asked is not None and (is_asked or asked <= there):
        return asked
    if asked is None and is_cpu:
        there = 1 if is_split else min(wanted, there)
    return max(_divisors(config.batch_size, there))


def _divisors(batch_size: int, most: int) -> Iterator[int]:
    return (number for number in range(1, most + 1) if batch_size % number == 0)

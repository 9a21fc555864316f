"""One implementation in a process of its own: its first step, its pace, and its peak memory.

    python -m bench.apart JSON

`run_apart` starts it; what it prints last is the answer. Before it looks at the clock or at memory
it has imported what it needs, made the weights that all start from, and trained another, tiny
system for a step; so what any use of the library costs is not counted. Compilation is.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ahead import without_compilation_cache
from bench.implementation import Implementation
from bench.measure import Timing, seconds, timing_of
from bench.ours import Ours
from bench.peers import MissingPeer, peer_named
from bench.report import OURS
from bench.shapes import AnySystem, Classification, DType, System

_STATUS = Path("/proc/self/status")
_TINY = System("tiny", 5, "lstm", 1, 4, batch_size=2, sequence_length=3)


class NotRun(Exception):
    """An implementation could not be run; the message says why."""


@dataclass(frozen=True)
class Apart:
    """What a process found.

    Attributes:
        first_s: seconds of the first step, compilation and all.
        step_s: seconds of each later one.
        peak_mb: megabytes of memory at the peak of building and of all steps, less what the
            process had before.
        settings: see `Training`.
    """

    first_s: float
    step_s: tuple[float, ...]
    peak_mb: float
    settings: dict[str, str]

    @property
    def timing(self) -> Timing:
        """Of the later steps."""
        return timing_of(list(self.step_s))


def run_apart(system: AnySystem, dtype: DType, implementation: str, steps: int) -> Apart:
    """Trains a system for some steps in a process of its own.

    Args:
        system: its shape.
        dtype: of the products.
        implementation: `lstm_jax`, or a peer's name.
        steps: how many, at least 2.

    Raises:
        NotRun: a library is missing, or it cannot run here.
        ValueError: this platform doesn't tell a process's memory.
    """
    require_memory_status()
    asked = {
        "kind": type(system).__name__,
        "system": dataclasses.asdict(system),
        "dtype": dtype,
        "implementation": implementation,
        "steps": steps,
    }
    command = [sys.executable, "-m", "bench.apart", json.dumps(asked)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotRun(f"its process ended with {done.returncode}: {last}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "not_run" in answer:
        raise NotRun(answer["not_run"])
    return Apart(**answer | {"step_s": tuple(answer["step_s"])})


def require_memory_status() -> None:
    """Raises ValueError where there is no `/proc/self/status`."""
    if not _STATUS.exists():
        raise ValueError(f"there is no {_STATUS}; a process's memory is only read on Linux")


def _run(asked: dict[str, Any]) -> Apart:
    kind = {each.__name__: each for each in (System, Classification)}[asked["kind"]]
    system, dtype = kind(**asked["system"]), asked["dtype"]
    name = asked["implementation"]
    implementation: Implementation = Ours() if name == OURS else peer_named(name)
    params = system.initial_params()
    implementation.build(_TINY, dtype, _TINY.initial_params()).step()
    gc.collect()
    _forget_peak()
    before = _status_mb("VmRSS")
    training = implementation.build(system, dtype, params)
    took = [seconds(training.step) for _ in range(asked["steps"])]
    peak = _status_mb("VmHWM") - before
    return Apart(took[0], tuple(took[1:]), max(0.0, peak), dict(training.settings))


def _forget_peak() -> None:
    """Lets the peak of resident memory begin anew, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status_mb(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / 1e6
    raise ValueError(f"{_STATUS} has no {name}")


def main(arguments: Sequence[str]) -> int:
    """Runs what `run_apart` asks for."""
    (asked,) = arguments
    try:
        with without_compilation_cache():
            answer = dataclasses.asdict(_run(json.loads(asked)))
    except (MissingPeer, ValueError) as reason:
        answer = {"not_run": str(reason)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

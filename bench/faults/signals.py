"""SIGTERM and SIGINT in every phase: the state is saved, the exit code says so."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from bench.faults.lines import Line
from bench.faults.phases import Phase
from bench.faults.processes import Process
from bench.faults.tiny import Place, differences, task_of
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import Task

PHASES = tuple(phase for phase in Phase if phase is not Phase.NOTHING)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS = 10.0
_SECONDS_TO_COMPILE = 60.0


def signal_runs(
    place: Place,
    whole: Path,
    phases: Sequence[Phase] = PHASES,
    numbers: Sequence[signal.Signals] = SIGNALS,
) -> list[Line]:
    """Sends each signal in each phase, and lets the run go on.

    Args:
        place: where the runs are, by the names of signals and phases.
        whole: one that was left alone.
        phases: which.
        numbers: which signals.
    """
    task = task_of(whole)
    lines = []
    for number in numbers:
        failures, longest, saved = [], 0.0, 0
        for phase in phases:
            name = f"{number.name}-{phase}"
            process = place.begun(name)
            process.wait_until(lambda board, phase=phase: board.is_in(phase))  # type: ignore[misc]
            began = time.monotonic()
            process.signal(number)
            found = [] if process.wait() == 128 + number else [f"exit code {process.wait()}"]
            seconds = time.monotonic() - began
            if phase > Phase.COMPILE:
                longest = max(longest, seconds)
            most = _SECONDS_TO_COMPILE if phase <= Phase.COMPILE else _SECONDS
            found += [] if seconds < most else [f"it took {seconds:.1f} s"]
            found += _unsaved(place.path / name, process)
            saved += not found
            found += _after(place, name, whole, task)
            failures += [f"in {phase}: {'; '.join(found)}"] if found else []
        seen = (
            f"one in each of {', '.join(map(str, phases))}; exit code {128 + number}; the state of "
            f"the last step saved in {saved}; within {longest:.1f} s, or once the first step is "
            "compiled; resumed exactly"
        )
        lines.append(Line(f"{number.name} in every phase", len(phases), tuple(failures), seen))
    return lines


def second_signal(place: Place, whole: Path, task: Task) -> Line:
    """A second one ends the process without another save."""
    name = "second-signal"
    process = place.begun(name)
    process.wait_until(lambda board: board.main is Phase.EVALUATION)
    process.signal(signal.SIGTERM)
    time.sleep(0.02)
    process.signal(signal.SIGTERM)
    code = process.wait()
    found = [] if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else [f"exit code {code}"]
    found += _after(place, name, whole, task)
    return Line(
        "a second signal at once",
        1,
        tuple(["; ".join(found)] if found else []),
        f"exit code {code}; earlier checkpoints whole; resumed exactly",
    )


def _unsaved(run: Path, process: Process) -> list[str]:
    """What is wrong with the checkpoints after a signal."""
    if process.board.main is Phase.START:
        return []  # it came before there was anything to save
    with CheckpointStore(RunFolder(run).checkpoints, read_only=True) as store:
        newest = store.latest_step()
    reached = process.board.step
    return [] if newest == reached else [f"step {reached} was reached, step {newest} saved"]


def _after(place: Place, name: str, whole: Path, task: Task) -> list[str]:
    try:
        return differences(whole, place.finished(name), task)
    except RuntimeError as refused:
        return [str(refused)]

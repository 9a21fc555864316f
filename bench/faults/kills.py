"""SIGKILL at random moments: every run resumes, and ends as one that was left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from time import sleep

import numpy as np

from bench.faults.lines import Line
from bench.faults.phases import Board, Phase
from bench.faults.processes import Process
from bench.faults.tiny import SAVE_EVERY, Place, differences, task_of
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder

_LONGEST = {
    Phase.START: 0.5,
    Phase.COMPILE: 1.0,
    Phase.STEP: 0.01,
    Phase.EVALUATION: 0.3,
    Phase.SAMPLE: 0.5,
    Phase.SAVE: 0.05,
    Phase.DELETION: 0.002,
    Phase.END: 0.3,
}
"""A kill comes at a random moment of so many seconds after its phase has begun."""


class _Tally:
    """What came of the kills."""

    def __init__(self) -> None:
        self.phases: Counter[Phase] = Counter()
        self.failures: list[str] = []
        self.lost: list[int] = []

    @property
    def tried(self) -> int:
        """Kills so far."""
        return self.phases.total()

    def count(self, board: Board, run: Path) -> None:
        """Takes in a process that was just killed in a run."""
        phase = board.saving or board.main
        self.phases[phase] += 1
        if board.main is Phase.START:  # nothing was done that could be lost
            return
        lost = max(0, board.step - _newest_step(run))
        self.lost.append(lost)
        if lost > SAVE_EVERY:
            self.failures.append(f"{lost} steps were lost, in {phase}")


def kill_runs(place: Place, whole: Path, *, kills: int, a_run: int, seed: int) -> Line:
    """Kills runs again and again, and lets each come to its end.

    Args:
        place: where the runs are, by the names killed-1, killed-2, and so on.
        whole: one that was left alone.
        kills: how many.
        a_run: how many of them one run has to bear.
        seed: of the moments.
    """
    random = np.random.default_rng(seed)
    task, tally, number = task_of(whole), _Tally(), 0
    while tally.tried < kills:
        number += 1
        name, before = f"killed-{number}", tally.tried
        run = place.path / name
        for _ in range(min(a_run, kills - before)):
            process = place.begun(name)
            if not _killed(process, random):
                break  # it had come to its end
            tally.count(process.board, run)
        found = differences(whole, place.finished(name), task)
        found += [f"{path.name} was set aside" for path in run.rglob("*.damaged*")]
        if found:
            tally.failures += [f"{name}: {'; '.join(found)}"] * (tally.tried - before)
    return Line("SIGKILL at a random moment", tally.tried, tuple(tally.failures), _seen(tally))


def _killed(process: Process, random: np.random.Generator) -> bool:
    """Waits for a phase, and a random while, and kills; False if the process ends before."""
    phase = Phase(int(random.choice([int(each) for each in _LONGEST])))
    steps = int(random.integers(0, 3 * SAVE_EVERY))
    if phase not in (Phase.START, Phase.COMPILE):
        if not process.wait_until(lambda board: board.main > Phase.START):
            return False
        first = process.board.step
        process.wait_until(lambda board: board.step >= first + steps or board.main is Phase.END)
    if not process.wait_until(lambda board: board.is_in(phase) or board.main is Phase.END):
        return False
    sleep(random.uniform(0, _LONGEST[phase]))
    if process.has_ended:
        return False
    process.kill()
    return True


def _newest_step(run: Path) -> int:
    with CheckpointStore(RunFolder(run).checkpoints, read_only=True) as store:
        return store.latest_step() or 0


def _seen(tally: _Tally) -> str:
    phases = ", ".join(f"{phase} {number}" for phase, number in sorted(tally.phases.items()))
    return (
        f"parameters, optimizer, rows of metrics and samples equal byte for byte; in {phases}; "
        f"steps lost: more than one save interval ({SAVE_EVERY}) in "
        f"{sum(lost > SAVE_EVERY for lost in tally.lost)} of {len(tally.lost)}, "
        f"at most {max(tally.lost, default=0)}"
    )

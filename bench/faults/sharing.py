"""Two processes on one run folder, and the lock of one that was killed."""

from __future__ import annotations

import signal
from pathlib import Path

from bench.faults.lines import Line
from bench.faults.phases import Phase
from bench.faults.tiny import Place, differences
from lstm_jax.cli.arguments import USAGE_ERROR
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import Task


def share(place: Place, whole: Path, task: Task) -> list[Line]:
    """Starts a second process while a first one trains, and again after the first was killed."""
    first = place.begun("shared")
    first.wait_until(lambda board: board.main in (Phase.STEP, Phase.EVALUATION, Phase.SAMPLE))
    first.signal(signal.SIGSTOP)  # it holds the folder for as long as it takes
    second = place.begun("shared", notes="second")
    code = second.wait()
    found = [] if code == USAGE_ERROR else [f"exit code {code}"]
    if "another process is training in" not in second.output or second.output.count("\n") > 1:
        found.append(f"it said: {second.output!r}")
    first.signal(signal.SIGCONT)
    found += [] if first.wait() == 0 else [f"the first one ended: {first.output}"]
    found += differences(whole, place.path / "shared", task)
    refused = Line(
        "a second process on the folder",
        1,
        tuple(["; ".join(found)] if found else []),
        f"refused by one line, exit code {USAGE_ERROR}; the first one's run as if alone",
    )

    killed = place.begun("stale")
    killed.wait_until(lambda board: board.main is Phase.STEP)
    killed.kill()
    found = [] if RunFolder(place.path / "stale").lock.exists() else ["it left no lock"]
    found += differences(whole, place.finished("stale"), task)
    stale = Line(
        "the lock of a killed process",
        1,
        tuple(["; ".join(found)] if found else []),
        "not in the way: the operating system freed it",
    )
    return [refused, stale]

"""No space, or no right to write: training goes on, and saves when there is space again."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from bench.faults.lines import Line
from bench.faults.tiny import differences
from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog, Row
from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.task import Task, first_state, restored_state

Fault = Callable[[RunFolder], AbstractContextManager[None]]
_TMPFS_BYTES = 4 << 20
_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


class _Report:
    """Brings a fault about at one step, and ends it at another."""

    def __init__(self, fault: AbstractContextManager[None], first: int, last: int) -> None:
        self._fault, self._first, self._last = fault, first, last
        self._under = ExitStack()
        self.notes: list[str] = []

    def end(self) -> None:
        """Ends the fault, if it has not ended."""
        self._under.close()

    def advance(self, step: int) -> None:
        """See `Report`."""
        if step == self._first:
            self._under.enter_context(self._fault)
        if step == self._last:
            self.end()

    def row(self, row: Row) -> None:
        """See `Report`."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """See `Report`."""

    def note(self, text: str) -> None:
        """See `Report`."""
        self.notes.append(text)


def fill_disks(whole: Path, task: Task, scratch: Path) -> list[Line]:
    """Trains into folders where nothing can be written for a while, or from a step to the end.

    Args:
        whole: a run that had no such trouble.
        task: what it trains.
        scratch: a folder for the runs.
    """
    faults: dict[str, Fault] = {
        "files of at most 0 bytes (RLIMIT_FSIZE)": no_bytes,
        "a file in the place of the checkpoints' folder": file_in_the_way,
    }
    for number in _ERRORS:
        faults[f"{errno.errorcode[number]} from each write"] = raising(number)
    lines = []
    for place, (name, fault) in enumerate(faults.items()):
        runs = {scratch / f"{place}-for-a-while": True, scratch / f"{place}-to-the-end": False}
        found = [tried(whole, task, run, fault, ends) for run, ends in runs.items()]
        lines.append(_line(name, found))
    return [_full_tmpfs(whole, task, scratch / "tmpfs"), *lines]


def tried(whole: Path, task: Task, run: Path, fault: Fault, ends: bool) -> list[str]:
    """What is wrong with a run that had a fault, for good or for a while."""
    folder = RunFolder(run)
    copy_description(RunFolder(whole), folder)
    every, steps = task.config.checkpoint_every, task.total_steps
    first = 2 * every + 1
    last = first + 2 * every if ends else steps + 1
    report = _Report(fault(folder), first, last)
    found = []
    try:
        _train(task, folder, report)
        found += [] if ends else ["it ended as if the last state had been saved"]
    except ValueError as error:
        found += [f"it ended: {error}"] if ends or "\n" in str(error) else []
    finally:
        report.end()
    if not ends:
        with CheckpointStore(folder.checkpoints, read_only=True) as store:
            newest = store.latest_step() or 0
        if newest != first - 1:
            found.append(f"the newest checkpoint is {newest}, the fault came at {first}")
        _train(task, folder, _Report(nullcontext(), -1, -1))
    if not any("was not saved" in note and "free space" in note for note in report.notes):
        found.append(f"no word of a save that failed: {report.notes}")
    return found + differences(whole, run, task)


def _train(task: Task, folder: RunFolder, report: _Report) -> None:
    with CheckpointStore(folder.checkpoints, keep_latest=task.config.keep_checkpoints) as store:
        state = first_state(task)
        progress: dict[str, Any] = {}
        if not store.is_empty:
            state, progress = restored_state(task, store)
        loop.train(task, state, folder, store, report, progress=progress)


@contextmanager
def no_bytes(folder: RunFolder) -> Iterator[None]:
    """What a full disk does to a write: an error from the system in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def file_in_the_way(folder: RunFolder) -> Iterator[None]:
    aside = folder.checkpoints.with_name("elsewhere")
    folder.checkpoints.rename(aside)
    folder.checkpoints.write_text("")
    try:
        yield
    finally:
        folder.checkpoints.unlink()
        aside.rename(folder.checkpoints)


def raising(number: int) -> Fault:
    """Every write raises one of the system's errors."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    @contextmanager
    def fault(folder: RunFolder) -> Iterator[None]:
        with (
            mock.patch("orbax.checkpoint.CheckpointManager", fail),
            mock.patch.object(MetricsLog, "flush", fail),
        ):
            yield

    return fault


def _full_tmpfs(whole: Path, task: Task, mount: Path) -> Line:
    """A real file system, filled to its last byte."""
    name = "a full disk (a small tmpfs)"
    mount.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(mount)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return Line(name, 0, (), "not tried: mounting one needs root")
    try:
        found = [tried(whole, task, mount / str(ends), _filling, ends) for ends in (True, False)]
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
    return _line(name, found)


@contextmanager
def _filling(folder: RunFolder) -> Iterator[None]:
    filler = folder.path.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    try:
        yield
    finally:
        filler.unlink()


def _line(name: str, found: list[list[str]]) -> Line:
    return Line(
        name,
        len(found),
        tuple("; ".join(each) for each in found if each),
        "one for a while, one to the end: told, trained on, earlier checkpoints whole, the next "
        "save with space good; parameters and rows of metrics as without",
    )

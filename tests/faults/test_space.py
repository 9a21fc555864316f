"""No space, or no right to write: training goes on, and saves when there is space again."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from run_cases import files_of_at_most
from short_runs import Promise, differences, newest_step
from tasks import Silent
from tasks import run as train

from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.task import Task

Fault = Callable[[RunFolder], AbstractContextManager[None]]


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


@contextmanager
def full_disk(folder: RunFolder) -> Iterator[None]:
    """Its file system, a small one, filled to its last byte."""
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


@contextmanager
def mounted(place: Path, *ways: str) -> Iterator[None]:
    try:
        for way in ways:
            subprocess.run(["mount", *way.split(), place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def read_only(folder: RunFolder) -> AbstractContextManager[None]:
    """The disk of its checkpoints is."""
    return mounted(folder.checkpoints, f"--bind {folder.checkpoints}", "-o remount,ro,bind")


def run_with(fault: Fault, ends: bool, whole: Path, task: Task, run: Path) -> list[str]:
    """What is wrong with a run that had a fault, for a while or to its end."""
    folder, report, under = RunFolder(run), Silent(), ExitStack()
    copy_description(RunFolder(whole), folder)
    every = task.config.checkpoint_every
    first, last = 2 * every + 1, 4 * every + 1

    def advance(step: int) -> None:
        if step == first:
            under.enter_context(fault(folder))
        if step == last and ends:
            under.close()

    report.advance = advance
    found = []
    try:
        with under:
            train(run, task, report=report)
        found += [] if ends else ["it ended as if the last state had been saved"]
    except ValueError as error:
        found += [f"it ended: {error}"] if ends or "\n" in str(error) else []
    if not ends:
        newest = newest_step(run)
        found += [] if newest == first - 1 else [f"the newest checkpoint is {newest}"]
        train(run, task)
    notes = str(report.notes)
    if "was not saved" not in notes or "free space" not in notes:
        found.append(f"no word of a save that failed: {notes}")
    return found + differences(whole, run, task)


FAULTS: dict[str, Fault] = {
    "files of at most 0 bytes (RLIMIT_FSIZE)": lambda _: files_of_at_most(0),
    "a file in the place of the checkpoints' folder": file_in_the_way,
    "a disk that becomes read-only (a bind mount)": read_only,
    "a full disk (a small tmpfs)": full_disk,
}


@pytest.mark.parametrize("name", FAULTS)
def test_without_space_training_goes_on_and_the_next_save_with_space_is_good(
    name: str, whole: Path, task: Task, tmp_path: Path, promise: Promise
) -> None:
    failures = []
    for ends in (True, False):
        place = tmp_path / str(ends)
        place.mkdir()
        small_disk = mounted(place, f"-t tmpfs -o size={4 << 20} tmpfs")
        with small_disk if FAULTS[name] is full_disk else nullcontext():
            found = run_with(FAULTS[name], ends, whole, task, place / "run")
        failures += [f"{ends=}: {found}"] if found else []
    promise(
        name,
        2,
        failures,
        "one for a while, one to the end: told, trained on, earlier checkpoints whole, the next "
        "save with space good; parameters and rows of metrics as without",
    )

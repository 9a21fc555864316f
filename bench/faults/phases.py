"""What a training process is doing, written where another process can read it.

Nothing in the library knows of it: functions are wrapped in the process that is to be watched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath  # type: ignore[import-untyped]

from lstm_jax.training import loop
from lstm_jax.training.checkpoint import CheckpointStore


class Phase(IntEnum):
    """What a process is doing.

    `NOTHING`: of the thread that saves; of the other, until the command begins.
    """

    NOTHING = 0
    START = 1
    COMPILE = 2
    STEP = 3
    EVALUATION = 4
    SAMPLE = 5
    SAVE = 6
    DELETION = 7
    END = 8

    def __str__(self) -> str:
        return self.name.lower()


class Board:
    """Three numbers in a file that both processes map: the two threads' phases, and the step.

    Args:
        path: of the file.
        new: whether to make it.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        mode: Any = "w+" if new else "r+"
        self._numbers = np.memmap(path, np.int32, mode, shape=3)
        if new:
            self._numbers[:] = Phase.NOTHING, Phase.NOTHING, 0

    @property
    def main(self) -> Phase:
        """Of the thread that trains."""
        return Phase(int(self._numbers[0]))

    @property
    def saving(self) -> Phase:
        """Of the thread that saves."""
        return Phase(int(self._numbers[1]))

    @property
    def step(self) -> int:
        """The steps that were begun, those of processes before included."""
        return int(self._numbers[2])

    def is_in(self, phase: Phase) -> bool:
        """Whether either thread is."""
        return phase in (self.main, self.saving)

    def set_step(self, step: int) -> None:
        """Notes a step."""
        self._numbers[2] = step

    def enter(self, phase: Phase) -> None:
        """Notes what the thread that trains goes on with."""
        self._numbers[0] = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A phase, and then the one before it."""
        thread = int(phase in (Phase.SAVE, Phase.DELETION))
        before = int(self._numbers[thread])
        self._numbers[thread] = phase
        try:
            yield
        finally:
            self._numbers[thread] = before


def watch(board: Board) -> None:
    """Has this process write its phases, from when training begins."""

    def within(owner: Any, name: str, phase: Phase) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def noted(*arguments: Any, **options: Any) -> Any:
            with board.during(phase):
                return function(*arguments, **options)

        setattr(owner, name, noted)

    within(loop, "heldout_metrics", Phase.EVALUATION)
    within(loop._Training, "_samples", Phase.SAMPLE)
    within(CheckpointStore, "save", Phase.SAVE)
    within(type(epath.Path()), "rmtree", Phase.DELETION)  # by which Orbax deletes
    _watch_steps(board)


def _watch_steps(board: Board) -> None:
    module: Any = loop
    step, train = module.train_step, module.train

    def noted_step(*arguments: Any) -> Any:
        found = step(*arguments)
        board.set_step(board.step + 1)
        board.enter(Phase.STEP)
        return found

    def noted_train(task: Any, state: Any, *arguments: Any, **options: Any) -> Any:
        board.set_step(int(state.step))
        board.enter(Phase.COMPILE)
        found = train(task, state, *arguments, **options)
        board.enter(Phase.END)
        return found

    module.train_step, module.train = noted_step, noted_train

"""Processes of `train.py` that can be watched, killed and signalled.

Each is forked from a server that has imported the packages and done nothing else, which saves the
seconds that importing takes; it runs all of the command, in its own process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.faults.phases import Board, Phase, watch
from lstm_jax.cli import running  # noqa: F401  (what the command imports late)
from lstm_jax.cli.arguments import run_command
from lstm_jax.cli.train import PROG, train_command

_PATIENCE = 300.0


class Process:
    """A process of `train.py`.

    Args:
        arguments: of the command.
        notes: a path to which suffixes are added, for its output and its phases.
    """

    def __init__(self, arguments: Sequence[str], notes: Path) -> None:
        self._output = notes.with_suffix(".out")
        phases = notes.with_suffix(".phases")
        self.board = Board(phases, new=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._process = context.Process(
            target=_train, args=(list(arguments), phases, self._output), daemon=True
        )
        self._process.start()

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.exitcode is not None

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def wait_until(self, reached: Callable[[Board], bool]) -> bool:
        """Waits for something to be true of its phases; False if it ends before."""
        deadline = time.monotonic() + _PATIENCE
        while not reached(self.board):
            if self.has_ended:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing came of it in {_PATIENCE:.0f} s: {self.output}")
            time.sleep(0.0002)
        return True

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        if self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Sends it SIGKILL, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def wait(self) -> int:
        """Waits for its end.

        Returns:
            Its exit code, as a shell has it: 128 and the number of the signal that ended it.
        """
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"it did not end in {_PATIENCE:.0f} s: {self.output}")
        return 128 - code if code < 0 else code


def _train(arguments: list[str], phases: Path, output: Path) -> None:
    """In the process."""
    descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    # A shell that starts a bench in the background has its processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    board = Board(phases)
    watch(board)

    def command(given: Sequence[str]) -> int:
        board.enter(Phase.START)
        return train_command(given)

    sys.argv = [PROG, *arguments]
    code = run_command(PROG, command)
    sys.stdout.flush()
    sys.exit(code)

"""Processes of tools; and those of the commands, that can be watched, killed and signalled.

Each of the latter is forked from a server that has imported the packages and done nothing else,
which saves the seconds that importing takes; it runs all of the command.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0
_IMPORTED_LATE = ("cli.main", "cli.train", "cli.sample", "cli.convert")


def run(*command: object, cwd: Path = ROOT, input: str | None = None) -> str:
    """What it prints, in a process that sees neither this checkout nor the suite's settings."""
    hidden = ("PYTHONPATH", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, input=input, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Process:
    """A process of a command: of a script in the root of the repository, or of a module.

    What it prints goes to files whose names begin as `notes`; its address space has so many bytes
    of `memory`, at the most.
    """

    def __init__(
        self, command: str, arguments: Sequence[str], notes: Path, *, place: Path | None = None,
        environment: Mapping[str, str] | None = None, memory: int | None = None,
    ) -> None:  # fmt: skip
        self._streams = [notes.with_name(f"{notes.name}.{end}") for end in ("out", "err", "began")]
        for stream in self._streams[:2]:
            stream.write_bytes(b"")
        self._streams[2].unlink(missing_ok=True)
        context = multiprocessing.get_context("forkserver")
        modules = [f"lstm_jax.{name}" for name in _IMPORTED_LATE]
        context.set_forkserver_preload([*modules, "matplotlib.backends.backend_agg"])
        given = (command, list(arguments), self._streams, place, dict(environment or {}), memory)
        self._process = context.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def has_begun(self) -> bool:
        return self._streams[2].exists()

    @property
    def has_ended(self) -> bool:
        return self._process.exitcode is not None

    @property
    def output(self) -> bytes:
        return self._streams[0].read_bytes()

    @property
    def errors(self) -> str:
        return self._streams[1].read_text(errors="replace")

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Waits for something to be true; False if the process ends before."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if self.has_ended:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing came of it in {PATIENCE:.0f} s: {self.errors}")
            time.sleep(0.0002)
        return True

    def signal(self, number: signal.Signals) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, number)

    def limit(self, what: int, most: int) -> int:
        """Sets a limit of its (see `resource`), and gives the one before."""
        assert self._process.pid is not None
        before, highest = resource.prlimit(self._process.pid, what)
        resource.prlimit(self._process.pid, what, (most, highest))
        return before

    def kill(self) -> None:
        """Sends it SIGKILL, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, as a shell has it: 128 and the number of the signal that ended it."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"it had not ended after {seconds:.0f} s: {self.errors}")
        return 128 - code if code < 0 else code


def _run(
    command: str, arguments: list[str], streams: list[Path], place: Path | None,
    environment: dict[str, str], memory: int | None,
) -> None:  # fmt: skip
    """In the process."""
    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=False):
        os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream.fileno())
    # A shell that starts the tests in the background has its processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    tempfile.tempdir = None
    if place is not None:
        os.chdir(place)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.argv = [command, *arguments]
    streams[2].touch()
    if command.endswith(".py"):
        runpy.run_path(str(ROOT / command), run_name="__main__")
    else:
        runpy.run_module(command, run_name="__main__")

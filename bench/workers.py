"""Processes in which the implementations run, each with an environment of its own.

A worker keeps what it has built and times it when it is asked to; functions go to it by name, and
results come back, over a pipe. It imports nothing before it is asked, so that variables of its
environment are set before any library reads them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple

from bench.timing import Visit
from lstm_jax.cli.allocator import keep_freed_memory

_SPAWN = multiprocessing.get_context("spawn")


class NotRun(ValueError):
    """An implementation cannot run here; the message says why."""


class Failed(Exception):
    """An implementation ended with an error, or its process did."""


class Disagreement(Exception):
    """An implementation does other work than ours."""


class Built(NamedTuple):
    """What an implementation made of the work.

    Attributes:
        calls: by name; each does all of it once, and returns when it is done.
        settings: what was chosen to make it fast.
    """

    calls: Mapping[str, Callable[[], object]]
    settings: Mapping[str, str]


class Entered(NamedTuple):
    """What was built in a worker: seconds of each call's first time, and the settings."""

    first_s: dict[str, float]
    settings: dict[str, str]


class Server:
    """What a worker does when it is asked."""

    def __init__(self) -> None:
        self._visits: dict[str, Visit] = {}

    def enter(self, build: Callable[..., Built], *given: Any) -> Entered:
        """Builds something in place of what was built before, and calls each of its calls."""
        self.leave()
        built = build(*given)
        self._visits = {name: Visit(call) for name, call in built.calls.items()}
        first_s = {name: visit.first_s for name, visit in self._visits.items()}
        return Entered(first_s, dict(built.settings))

    def visit(self, name: str) -> list[float]:
        """Times one of the calls for about a quarter of a second."""
        return self._visits[name]()

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a function returns."""
        return function(*given)

    def leave(self) -> None:
        """Frees what was built."""
        self._visits = {}
        gc.collect()

    def answer(self, what: str, given: Sequence[Any]) -> tuple[type[Exception] | None, Any]:
        """Does one of the above; what came of it, or what kind of error and its message."""
        try:
            return None, getattr(self, what)(*given)
        except Disagreement as reason:
            return Disagreement, str(reason)
        except ValueError as reason:
            return NotRun, str(reason)
        except Exception as error:
            traceback.print_exc()
            return Failed, f"{type(error).__name__}: {error}"


class Worker:
    """A process that does what a `Server` does; to be stopped, or used with `with`.

    Args:
        environment: variables that it has besides ours.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,))
        with _environment(environment):
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()

    def enter(self, build: Callable[..., Built], *given: Any) -> Entered:
        """See `Server`; raises what `call` does."""
        entered: Entered = self.ask("enter", build, *given)
        return entered

    def visit(self, name: str) -> list[float]:
        """See `Server`; raises what `call` does."""
        found: list[float] = self.ask("visit", name)
        return found

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a function returns there.

        Raises:
            NotRun: it cannot run here.
            Disagreement: it says so.
            Failed: it ended with another error, or the process did.
        """
        return self.ask("call", function, *given)

    def leave(self) -> None:
        """See `Server`."""
        self.ask("leave")

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def ask(self, what: str, *given: Any) -> Any:
        """What the server's method of that name returns; raises what `call` does."""
        try:
            self._connection.send((what, given))
            error, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failed(f"its process ended with {self._process.exitcode}") from None
        if error is not None:
            raise error(answer)
        return answer


def _serve(connection: Connection) -> None:
    """Answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends it
    os.dup2(2, 1)  # what libraries print is no part of a table
    keep_freed_memory()
    server = Server()
    while True:
        try:
            what, given = connection.recv()
        except EOFError:
            return
        connection.send(server.answer(what, given))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

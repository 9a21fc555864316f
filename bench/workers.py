"""Processes in which the implementations run, each with an environment of its own.

A process imports nothing before it is asked, so that variables of its environment are set before
any library reads them. It is asked over a pipe: functions go there by name, results come back.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from bench.timing import Visit
from lstm_jax.cli.allocator import keep_freed_memory

P = ParamSpec("P")
R = TypeVar("R")

NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""The environment of a process that takes nothing from the user's JAX_COMPILATION_CACHE_DIR."""

_SPAWN = multiprocessing.get_context("spawn")


class NotRun(ValueError):
    """An implementation cannot run here; the message says why."""


class Failed(ValueError):
    """An implementation ended with an error, or its process did."""


class Disagreement(Exception):
    """An implementation does other work than ours."""


class Built(NamedTuple):
    """What an implementation made of the work: calls that do all of it once, and its settings."""

    calls: Mapping[str, Callable[[], object]]
    settings: Mapping[str, str]


class Entered(NamedTuple):
    """What was built in a process: seconds of each call's first time, and the settings."""

    first_s: dict[str, float]
    settings: dict[str, str]


class Server:
    """What a process does when it is asked."""

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

    def answer(self, method: Callable[..., Any], *given: Any) -> Any:
        """What one of the methods above gives, or an error of one of the three kinds."""
        try:
            return method(self, *given)
        except Disagreement as reason:
            return reason
        except ValueError as reason:
            return NotRun(str(reason))
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {error}")


class Worker:
    """A process with a `Server` and variables besides ours in its environment; to be closed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,))
        with _environment(environment):
            self._process.start()
        theirs.close()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def ask(
        self, method: Callable[Concatenate[Server, P], R], *given: P.args, **named: P.kwargs
    ) -> R:
        """What a method of the process's `Server` returns; all arguments go by place.

        Raises:
            NotRun, Disagreement: it says so.
            Failed: it ended with another error, or the process did.
        """
        answer = self.answer(method, *given)
        if isinstance(answer, NotRun | Disagreement | Failed):
            raise answer
        found: R = answer
        return found

    def answer(self, method: Callable[..., Any], *given: Any) -> Any:
        try:
            self._connection.send((method, *given))
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Failed(f"its process ended with {self._process.exitcode}")


def _serve(connection: Connection) -> None:
    """Answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends it
    os.dup2(2, 1)  # what libraries print is no part of a table
    keep_freed_memory()
    server = Server()
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(server.answer(*connection.recv()))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

"""Processes in which implementations run, each with its own environment.

A process imports nothing before its first request, so that its environment variables are set before
any library reads them. Requests go over a pipe: functions by name, and results back.
"""

import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Concatenate, NamedTuple, ParamSpec, TypeVar
from unittest.mock import patch

from bench.timing import Visit
from lstm_jax.cli.allocator import keep_freed_memory

P = ParamSpec("P")
R = TypeVar("R")

NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""Environment of a process, without the user's JAX_COMPILATION_CACHE_DIR."""

SPAWN = multiprocessing.get_context("spawn")


class Reason(ValueError):
    """Why an implementation does not take part."""

    how: ClassVar[str]


class NotRun(Reason):
    """It cannot run here."""

    how = "cannot run"


class Failed(Reason):
    """It, or its process, failed."""

    how = "failed"


class Late(Failed):
    """It did not answer in time, and was killed."""


class Disagreement(Reason):
    """It does other work than ours."""

    how = "does other work"


class Built(NamedTuple):
    """Calls that each do all of the work once, and the settings of an implementation."""

    calls: Mapping[str, Callable[[], Any]]
    settings: Mapping[str, str]
    evidence: Callable[..., Any] | None = None  # shows which work the calls do.


class Server:
    """Answers requests inside a process."""

    _visits: Mapping[str, Visit] = {}
    _evidence: Callable[..., Any] | None = None

    def enter(
        self, build: Callable[..., Built], *given: Any
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Replace what was built; return seconds of each new call's first run, and the settings."""
        self.leave()
        built = build(*given)
        self._evidence = built.evidence
        self._visits = {name: Visit(call) for name, call in built.calls.items()}
        return {name: each.first_s for name, each in self._visits.items()}, dict(built.settings)

    def show(self, *given: Any) -> Any:
        assert self._evidence is not None
        return self._evidence(*given)

    def visit(self, name: str, *given: Any) -> list[float]:
        return self._visits[name](*given)

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(*given)

    def leave(self) -> None:
        self._visits, self._evidence = {}, None
        gc.collect()

    def answer(self, method: Callable[..., Any], *given: Any) -> Any:
        """Result of one of the methods above, or a `Reason`."""
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
    """A process with a `Server` and extra environment variables, killed after `limit_s` seconds.

    It is to be closed after use.
    """

    def __init__(self, environment: Mapping[str, str], limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs,))
        with patch.dict(os.environ, environment):
            self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def ask(
        self, method: Callable[Concatenate[Server, P], R], *given: P.args, **named: P.kwargs
    ) -> R:
        """Call a method of the `Server`, positionally; raises its Reason, or that it ended."""
        answer = self.answer(method, *given)
        if isinstance(answer, Reason):
            raise answer
        return answer

    def answer(self, method: Callable[..., Any], *given: Any) -> Any:
        try:
            self._connection.send((method, *given))
            if not self._connection.poll(self._limit_s):
                self._process.kill()
                self._process.join()
                return Late(f"no answer in {self._limit_s} s")
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Failed(f"its process ended with {self._process.exitcode}")


def _serve(connection: Connection) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends it
    os.dup2(2, 1)  # keeps libraries' output out of tables
    keep_freed_memory()
    server = Server()
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(server.answer(*connection.recv()))

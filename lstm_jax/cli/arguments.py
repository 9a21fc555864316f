"""Command lines generated from dataclasses, and errors of one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tyro

from lstm_jax.cli.allocator import keep_freed_memory
from lstm_jax.cli.output import discard, replace_what_cannot_be_shown, tell

T = TypeVar("T")

USAGE_ERROR = 2
_LONGEST_LINE = 1_000
_FRAME = re.compile(r"[╭╮╰╯│─]+")


def parse(cls: type[T], default: T | None, arguments: Sequence[str], prog: str) -> T:
    """Reads a command line into a dataclass whose fields are its flags; they change `default`.

    Raises:
        ValueError: with one line, for whatever is wrong with the arguments.
        SystemExit: after printing help.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                cls,
                default=tyro.MISSING_NONPROP if default is None else default,
                args=list(arguments),
                prog=prog,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(f"{_first_part(printed.getvalue())}; see {prog} --help") from None


def _first_part(box: str) -> str:
    """The message at the top of the box that tyro draws around an error."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = _FRAME.sub(" ", line).strip()
        if not text and lines:
            break
        lines.append(text)
    return " ".join(" ".join(lines).split())


def error_line(error: Exception) -> str:
    """What an error says in one line: all of it, or its beginning and its end, where the cure is.

    What a user gave may be of any length, and errors repeat it.
    """
    line = " ".join(str(error).split())
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 3 :]}"


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C ends the process at once, meanwhile.

    As an exception it may get lost in the midst of an import, or crash an extension module.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_command(prog: str, command: Callable[[Sequence[str]], int]) -> int:
    """Runs a command; what the user can mend is one line on standard error, and exit code 2."""
    keep_freed_memory()
    replace_what_cannot_be_shown()
    try:
        return command(sys.argv[1:])
    except BrokenPipeError:
        # Whoever read the output has had enough; Python would complain once more at its exit.
        discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        tell(f"{prog}: error: {error_line(error)}")
        return USAGE_ERROR
    except Exception as error:
        line = _out_of_memory(error) or _absent_backend()
        if line is None:
            raise
        tell(f"{prog}: error: {line}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        tell(f"{prog}: interrupted")
        return 128 + signal.SIGINT


def _out_of_memory(error: Exception) -> str | None:
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    wanted = error_line(error) or "nothing was left"
    return f"there is not enough memory ({wanted}); use a smaller model, batch or length"


def _absent_backend() -> str | None:
    """What to do where JAX has no device to compute on; None where it has one."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        asked = [f"{name} is {os.environ[name]!r}" for name in names if name in os.environ]
        reasons = ", ".join(filter(None, [*asked, error_line(error)]))
        return f"JAX finds no device to compute on: {reasons}; unset it, or set it to cpu"
    return None

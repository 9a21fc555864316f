"""Command lines generated from dataclasses, and errors of one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import tyro

from lstm_jax.cli.allocator import keep_freed_memory
from lstm_jax.cli.output import (
    discard,
    open_closed_streams,
    replace_what_cannot_be_shown,
    tell,
)

T = TypeVar("T")

USAGE_ERROR = 2
HELP_ALL = "--help-all"
_LONGEST_LINE = 1_000
_MOST_HINTS = 3
_COLUMNS_OF_FLAGS = "80"
# On an output that is not UTF-8 the box is drawn in ASCII.
_FRAME = re.compile(r"[╭╮╰╯│─]+|-{9,}")
_FLAG_OF_HELP = re.compile(r"^[│ ]*(--[a-z][\w.-]*) *(\S*)", re.MULTILINE)


def parse(
    cls: type[T],
    default: T | None,
    arguments: Sequence[str],
    prog: str,
    short_help: str | None = None,
) -> T:
    """Reads a command line into a dataclass whose fields are its flags; they change `default`.

    A flag of a group may go by its last part (--hidden-size for --model.hidden-size), and a text
    may begin with dashes, where no other flag could be meant.

    Args:
        cls: the dataclass.
        default: what flags that are not given leave; None where some must be given.
        arguments: the command line, without the program.
        prog: the program, as help and errors call it.
        short_help: what --help prints, with `{prog}` for the program; --help-all prints all flags
            then.

    Raises:
        ValueError: with one line, for whatever is wrong with the arguments.
        SystemExit: after printing help.
    """
    if short_help is not None and not {"-h", "--help"}.isdisjoint(arguments):
        print(short_help.format(prog=prog))
        raise SystemExit
    arguments = ["--help" if each == HELP_ALL else each for each in arguments]
    try:
        return _parse(cls, default, arguments, prog)
    except _UsageError:
        flags = _flags(cls, default, prog)
    try:
        return _parse(cls, default, _as_meant(arguments, flags), prog)
    except _UsageError as error:
        hints = "".join(f"; {hint}" for hint in _hints(arguments, flags))
        full_help = "--help" if short_help is None else HELP_ALL
        raise ValueError(f"{error}{hints}; see {prog} {full_help}") from None


class _UsageError(ValueError):
    """What tyro says of arguments that are none of its flags, or no value of one."""


def _parse(cls: type[T], default: T | None, arguments: Sequence[str], prog: str) -> T:
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
        raise _UsageError(_first_part(printed.getvalue())) from None


def _flags(cls: type[T], default: T | None, prog: str) -> dict[str, bool]:
    """All flags, and of each whether texts are its values, as the help has them."""
    page = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = (
        _COLUMNS_OF_FLAGS  # a narrower page breaks them, a wider one has columns
    )
    try:
        with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
            _parse(cls, default, ["--help"], prog)
    finally:
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width
    found = _FLAG_OF_HELP.findall(page.getvalue())
    flags = {flag: "STR" in kind or "PATH" in kind for flag, kind in found}
    return flags | {"-h": False, "--help": False}


def _flag(argument: str, flags: Mapping[str, bool]) -> str | None:
    """The flag that an argument names, in full or by a last part that no other flag has."""
    name = argument.partition("=")[0].replace("_", "-")
    if name in flags:
        return name
    found = [flag for flag in flags if f"--{flag.rpartition('.')[2]}" == name]
    return found[0] if len(found) == 1 else None


def _as_meant(arguments: Sequence[str], flags: Mapping[str, bool]) -> list[str]:
    """The arguments with flags in full, and with each text that looks like one tied to its flag."""
    meant: list[str] = []
    for argument in arguments:
        flag = _flag(argument, flags) if argument.startswith("-") else None
        if flag is not None:
            _, equals, value = argument.partition("=")
            meant.append(f"{flag}{equals}{value}")
        elif argument.startswith("-") and meant and flags.get(meant[-1]):
            meant[-1] += f"={argument}"
        else:
            meant.append(argument)
    return meant


def _hints(arguments: Sequence[str], flags: Mapping[str, bool]) -> Iterator[str]:
    """How to say what seems to be meant."""
    last, is_next = "", False
    for argument in arguments:
        flag = _flag(argument, flags)
        if argument.startswith("-"):
            if flag is None and (near := _near(argument, flags)):
                yield f"did you mean {' or '.join(near)}"
            elif flags.get(last) and is_next == (flag is not None):
                yield f"a text that begins with dashes is given as {last}={argument}"
        last, is_next = flag or last, flag is not None and "=" not in argument


def _near(argument: str, flags: Mapping[str, bool]) -> list[str]:
    """The flags whose name, or its last part, is spelled much like an argument, or begins so."""
    name = argument.partition("=")[0].replace("_", "-").strip("-")
    if len(name) < 2:
        return []
    parts: dict[str, list[str]] = {}
    for flag in flags:
        last_part = flag.rpartition(".")[2].strip("-")
        initials = "".join(word[0] for word in last_part.split("-"))
        for part in dict.fromkeys((flag.strip("-"), last_part, initials)):
            parts.setdefault(part, []).append(flag)
    near = [part for part in parts if part.startswith(name)]
    near += difflib.get_close_matches(name, parts, cutoff=0.7)
    return list(dict.fromkeys(flag for part in near for flag in parts[part]))[:_MOST_HINTS]


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
    open_closed_streams()
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
        line = _out_of_memory(error) or _guarded_transfer(error) or _absent_backend()
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


def _guarded_transfer(error: Exception) -> str | None:
    if "Disallowed" not in str(error) or "transfer" not in str(error):
        return None
    set_to = ", ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("JAX_TRANSFER"))
    return f"{error_line(error)} ({set_to}); unset that, or set it to log"


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

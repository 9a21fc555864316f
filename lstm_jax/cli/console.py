"""Standard output and standard error, whatever they can't show; errors of one line."""

import contextlib
import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from lstm_jax.cli.allocator import keep_freed_memory
from lstm_jax.training.log import finite

USAGE_ERROR = 2
START_AGAIN = 75  # The exit code (EX_TEMPFAIL) of a process that the end of another has ended

START_ALL_AGAIN = "start all of them again, with --resume"
_OF_ANOTHER = re.compile("gloo|nccl|coordination service|heartbeat", re.IGNORECASE)
"""What is in the errors of collectives that lack a process."""

_LONGEST_LINE = 1_000


def run_command(prog: str, command: Callable[[Sequence[str]], int]) -> int:
    """Runs a command; what the user can mend is one line on standard error, and exit code 2."""
    keep_freed_memory()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    try:
        done = command(sys.argv[1:])
        put("")
        return done
    except BaseException as error:
        code = _code_of(error, prog)
        if _has_joined_others():
            if code is None:
                traceback.print_exc()
            leave(1 if code is None else code)  # Python's exit would wait for the others
        if code is None:
            raise
        return code


def _code_of(error: BaseException, prog: str) -> int | None:
    """The exit code that an error ends in, which is told; None where it is no fault of theirs."""
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has had enough; Python would complain once more at its exit.
        _discard(sys.stdout)
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        tell(f"{prog}: interrupted")
        return 128 + signal.SIGINT
    if not isinstance(error, Exception):
        return None
    line = error_line(error)
    if _has_joined_others() and _OF_ANOTHER.search(line):
        tell(f"{prog}: another process of this run ended ({line:.160}); {START_ALL_AGAIN}")
        return START_AGAIN
    told = line if isinstance(error, (ValueError, OSError)) else _cure(error, line)
    if told is None:
        return None
    tell(f"{prog}: error: {told}")
    return USAGE_ERROR


def _has_joined_others() -> bool:
    """Whether this process is one of several (see `processes.joined`)."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def leave(code: int) -> NoReturn:
    """Ends the process at once, whatever its threads, JAX or the other processes do."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def error_line(error: Exception) -> str:
    """What an error says in one line: all, or its beginning and its end, where the cure is."""
    line = " ".join(str(error).split())
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 3 :]}"


def _cure(error: Exception, line: str) -> str | None:
    """What the user can do about one of JAX's errors; None where it is no fault of theirs."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line:
        wanted = line or "nothing was left"
        return f"there is not enough memory ({wanted}); use a smaller model, batch or length"
    if "Disallowed" in line and "transfer" in line:
        return f"{line} ({_variables('JAX_TRANSFER')}); unset that, or set it to log"
    if jax := sys.modules.get("jax"):
        try:
            jax.local_devices()
        except (RuntimeError, AssertionError) as absent:
            reasons = ", ".join(filter(None, [_variables("JAX_PLATFORM"), error_line(absent)]))
            return f"JAX finds no device to compute on: {reasons}; unset it, or set it to cpu"
    return None


def _variables(prefix: str) -> str:
    found = sorted(each for each in os.environ.items() if each[0].startswith(prefix))
    return ", ".join(f"{name} is {value!r}" for name, value in found)


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


def _open_closed_streams() -> None:
    """Opens what was closed of the standard streams, as `>&-` does, on nothing.

    Python has None there, which libraries trip over, and the system would give the next file
    that is opened the number of the closed stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def tell(line: str) -> None:
    """Prints to standard error, if it still takes anything."""
    # A signal's handler may come in the middle of another line; Python refuses to nest the two.
    with contextlib.suppress(OSError, RuntimeError):
        print(line, file=sys.stderr, flush=True)


def put(text: str) -> None:
    """Writes to standard output at once; raises ValueError where it takes no more.

    Where nobody reads it, it is BrokenPipeError.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)  # what it still holds, too
        problem = f"standard output fails ({error.strerror})"
        raise ValueError(f"{problem}; send it where there is room") from None


def json_line(value: Any) -> str:
    """Strict JSON (see `finite`) for standard output, escaped where its encoding needs it."""
    value = finite(value)
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return line


class Shown:
    """A stream for what is only shown: once it fails, what comes later is dropped.

    A full disk, a closed pipe or a terminal that is gone would end the program otherwise. It is no
    `io.TextIOBase`, which flushes once more when it is freed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes as long as that succeeds."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes as long as that succeeds."""
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # What the stream still holds goes nowhere either, or Python would complain at its exit.
            _discard(self._stream)
            tell(f"standard output fails ({error.strerror}); nothing more is shown there")


def _discard(stream: TextIO) -> None:
    """Sends what a stream holds, and what is still written to it, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

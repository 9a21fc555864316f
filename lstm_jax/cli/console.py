"""Standard output and error, robust to what they cannot show; one-line error messages."""

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

import jax

from lstm_jax.cli.allocator import keep_freed_memory
from lstm_jax.cli.flags import compile_loops_whole
from lstm_jax.files import one_line
from lstm_jax.training.log import finite

USAGE_ERROR = 2
START_AGAIN = 75  # exit code (EX_TEMPFAIL) of a process that stops because another ended

START_ALL_AGAIN = "start all of them again, with --resume"
_OF_ANOTHER = re.compile("gloo|nccl|coordination service|heartbeat", re.IGNORECASE)
"""Matches errors of collectives that miss a process."""

_LONGEST_LINE = 1_000


def run_command(prog: str, command: Callable[[Sequence[str]], int]) -> int:
    """Run a command; a user error becomes one line on standard error, and exit code 2."""
    keep_freed_memory()
    compile_loops_whole()
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
    """Report an error and return its exit code, or None for an error that is not the user's."""
    if isinstance(error, BrokenPipeError):
        # The reader closed the output; Python would complain again at exit.
        _discard(sys.stdout)
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        tell(f"{prog}: interrupted")
        return 128 + signal.SIGINT
    if not isinstance(error, Exception):
        return None
    line = one_line(error, _LONGEST_LINE)
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
    return bool(jax.distributed.is_initialized())


def leave(code: int) -> NoReturn:
    """End the process at once, regardless of threads, JAX and other processes."""
    for stream in (sys.stdout, sys.stderr):
        # A signal handler may leave in the middle of a write; see `tell`.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    os._exit(code)


def _cure(error: Exception, line: str) -> str | None:
    """Cure for one of JAX's errors, or None if it is not the user's."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line:
        wanted = line or "nothing was left"
        return f"there is not enough memory ({wanted}); use a smaller model, batch or length"
    if "Disallowed" in line and "transfer" in line:
        return f"{line} ({_variables('JAX_TRANSFER')}); unset that, or set it to log"
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as absent:
        why = [_variables("JAX_PLATFORM"), one_line(absent, _LONGEST_LINE)]
        reasons = ", ".join(filter(None, why))
        return f"JAX finds no device to compute on: {reasons}; unset it, or set it to cpu"
    return None


def _variables(prefix: str) -> str:
    found = sorted(each for each in os.environ.items() if each[0].startswith(prefix))
    return ", ".join(f"{name} is {value!r}" for name, value in found)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """While importing, let Ctrl-C end the process at once.

    KeyboardInterrupt can get lost during an import, or crash an extension module.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _open_closed_streams() -> None:
    """Open closed standard streams, as after `>&-`, on /dev/null.

    Python sets them to None, which breaks libraries, and the next file would get their descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def tell(line: str) -> None:
    """Print to standard error, if it still accepts output."""
    # A signal handler may interrupt another line; Python does not allow nested writes.
    with contextlib.suppress(OSError, RuntimeError):
        print(line, file=sys.stderr, flush=True)


def put(text: str) -> None:
    """Write to standard output at once; raises ValueError if it accepts no more.

    Raises BrokenPipeError if nobody reads it.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)  # including what is still buffered
        problem = f"standard output fails ({error.strerror})"
        raise ValueError(f"{problem}; send it where there is room") from None


def json_line(value: Any) -> str:
    """Format strict JSON (see `finite`) for standard output, escaped if its encoding needs it."""
    value = finite(value)
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return line


class Shown:
    """A stream for display only: once it fails, later output is dropped.

    Otherwise a full disk, a closed pipe or a lost terminal would end the program. It is not an
    `io.TextIOBase`, which flushes once more when it is freed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write unless that has failed before."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush unless that has failed before."""
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # Drop what the stream has buffered too, or Python would complain at exit.
            _discard(self._stream)
            tell(f"standard output fails ({error.strerror}); nothing more is shown there")


def _discard(stream: TextIO) -> None:
    """Discard what a stream has buffered, and what is written to it later."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

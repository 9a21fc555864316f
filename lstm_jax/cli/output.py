"""Standard output and standard error, whatever they can't show and however they fail."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any, TextIO

from lstm_jax.training.log import finite


def open_closed_streams() -> None:
    """Opens what was closed of the standard streams, as `>&-` does, on nothing.

    Python has None there, which libraries trip over, and the system would give the next file
    that is opened the number of the closed stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def replace_what_cannot_be_shown() -> None:
    """Has both streams show ? for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def tell(line: str) -> None:
    """Prints to standard error, if it still takes anything."""
    # A signal's handler may come in the middle of another line; Python refuses to nest the two.
    with contextlib.suppress(OSError, RuntimeError):
        print(line, file=sys.stderr, flush=True)


def json_line(value: Any) -> str:
    """Strict JSON (see `finite`) for standard output, escaped where its encoding needs it."""
    line = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(finite(value), allow_nan=False)
    return line


class Shown:
    """A stream for what is only shown: once it fails, what comes later is dropped.

    A full disk, a closed pipe or a terminal that is gone would end the program otherwise. It is no
    `io.TextIOBase`, which flushes once more when it is freed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """The stream's."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Writes as long as that succeeds."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flushes as long as that succeeds."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """What the stream still holds goes nowhere either, or Python would complain at its exit."""
        discard(self._stream)
        tell(f"standard output fails ({error.strerror}); nothing more is shown there")


def discard(stream: TextIO) -> None:
    """Sends what a stream holds, and what is still written to it, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

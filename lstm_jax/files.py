"""Atomic writes, digests, and short descriptions of file errors."""

import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | bytearray) -> None:
    """Write a file atomically, replacing any existing one, so that no reader sees half of it.

    Raises OSError if it cannot be written, and ValueError if the path is invalid.
    """
    target = Path(path)
    # Not tempfile: it creates files with mode 0600, which the rename would keep.
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: OSError | ValueError) -> str:
    """Short reason of a file error, without the paths that an OSError's full text repeats."""
    if isinstance(error, OSError):
        return error.strerror or "input/output error"
    return "not a possible path"


def one_line(error: Exception, most: int = 200) -> str:
    """An error's message as one line: all of it, or its beginning and its end with the cure."""
    line = " ".join(str(error).split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 3 :]}"


def listed(shown: Sequence[str]) -> str:
    """The first ten of some names, and the number of the others."""
    more = len(shown) - 10
    return ", ".join(shown[:10]) + f" and {more} more" * (more > 0)


def contents(folder: Path) -> str:
    """What a folder holds, by name, as the end of a sentence about it."""
    names = sorted(repr(each.name) for each in folder.glob("*"))
    return f"holds {listed(names)}" if names else "is empty"


def is_device(path: str | os.PathLike[str]) -> bool:
    """Whether reading the path may never end, as with a terminal or /dev/zero."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def set_aside(path: Path) -> Path:
    """Rename to NAME.damaged, or NAME.damaged-2 and so on; returns the new path."""
    ends = chain([""], (f"-{number}" for number in count(2)))
    places = (path.with_name(f"{path.name}.damaged{end}") for end in ends)
    return path.rename(next(place for place in places if not place.exists()))

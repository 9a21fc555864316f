"""Files: written whole or not at all, their digests, and what is said of those that fail."""

import hashlib
import os
import secrets
import stat
from itertools import chain, count
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | bytearray) -> None:
    """Writes a file in one step, so that no reader sees half of it; one that is there is replaced.

    Raises OSError where it cannot be written, and ValueError where it is not a possible path.
    """
    target = Path(path)
    # Not tempfile: its files are private (mode 0600), and the mode would survive the move.
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
    """The SHA-256 of a file's bytes, in hexadecimal; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: OSError | ValueError) -> str:
    """Why a file failed, in a few words; an OSError's full text repeats the paths."""
    if isinstance(error, OSError):
        return error.strerror or "input/output error"
    return "not a possible path"


def one_line(error: Exception, most: int = 200) -> str:
    """What an error says, on one line and in at most `most` characters."""
    return " ".join(str(error).split())[:most]


def is_device(path: str | os.PathLike[str]) -> bool:
    """Whether reading it may never end, as with /dev/zero and with a terminal."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def set_aside(path: Path) -> Path:
    """Renames it to NAME.damaged, or NAME.damaged-2 and so on; gives where it is now."""
    ends = chain([""], (f"-{number}" for number in count(2)))
    places = (path.with_name(f"{path.name}.damaged{end}") for end in ends)
    return path.rename(next(place for place in places if not place.exists()))

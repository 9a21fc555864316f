"""Read a corpus into one `str`: a file, or the running Python's own documentation."""

import os
import re
from pathlib import Path

from lstm_jax.files import contents, is_device, reason
from lstm_jax.text.decoding import decode


def read_text(path: str | os.PathLike[str], *, as_is: bool = False) -> str:
    r"""Read a UTF-8 text; a byte order mark is dropped, and CRLF and CR line ends become LF.

    `as_is` keeps both, for callers that count a file's characters.

    Raises:
        ValueError: a one-line message with the path, the problem and the cure, for a file that is
            missing, a folder, unreadable, empty or only white space, packed, not UTF-8 (with the
            offset of the first wrong byte), or binary (contains a NUL byte).
    """
    decoded = _read_decoded(path)
    text = decoded.removeprefix("\ufeff")
    if not text.strip():
        shown = repr(os.fspath(path))
        raise ValueError(f"{shown} holds no text; give a file with something to learn from")
    return decoded if as_is else text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""Read the lines of a UTF-8 text; only LF and CRLF end a line.

    A byte order mark is dropped. As with `text.split("\n")`, a line end at the end of the file
    gives an empty last line, so `"\n".join(lines)` is the text.

    Raises:
        ValueError: as for `read_text`, except for an empty file.
    """
    return _read_decoded(path).removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def python_documentation() -> str:
    r"""Return the language reference that comes with Python, a corpus without a download.

    It consists of the topics of `pydoc_data.topics` in sorted order, about 0.5 million characters
    (the exact text depends on the Python version), as one document. A topic that repeats an earlier
    one is dropped, so that no held-out topic was seen in training, and topics and section titles
    are separated by one blank line. Raises ValueError if this Python has no `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python comes without its documentation (the module pydoc_data.topics); "
            "give a text file instead, or use a full installation of Python"
        ) from None
    distinct = dict.fromkeys(topics[key].strip("\n") for key in sorted(topics))
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(distinct)) + "\n"


def _read_decoded(path: str | os.PathLike[str]) -> str:
    shown = repr(os.fspath(path))  # repr keeps a path that contains a line end on one line
    if is_device(path):
        raise ValueError(f"{shown} is a device; give a text file")
    if os.path.isdir(path):
        raise ValueError(f"{shown} is a folder, which {contents(Path(path))}; give a text file")
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{shown} does not exist; check the spelling and the working folder"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{shown} cannot be read ({reason(error)}); give the path of a readable text file"
        ) from None
    return decode(raw, shown)

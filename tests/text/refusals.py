"""What is said of an input that can't be used, and the corpora that some tests need."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("LSTM_JAX_DATA", "no folder"))
real_corpora = pytest.mark.skipif(not DATA.is_dir(), reason="LSTM_JAX_DATA names no folder")


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The ValueError of a call: one line, with a cure."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


def file_refusal(
    read: Callable[[Path], object], path: Path, content: str | bytes | None = None
) -> str:
    """The ValueError of a reader, which names the file; content is written to it first."""
    if content is not None:
        write(path, content)
    message = refusal(read, path)
    assert repr(str(path)) in message
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path

"""An archive whose members are said to end far beyond it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lstm_jax.text import read_reviews, reviews


@pytest.mark.parametrize("size", [2**33, 2**62])
def test_a_member_that_ends_beyond_the_archive_is_not_read_to_that_end(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT):
        info = tarfile.TarInfo("notes.bin")
        info.size = size
        buffer.write(info.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "reviews.tar").write_bytes(buffer.getvalue())
    reads, read = 0, reviews._BoundedReader.read

    def counted(reader: Any, size: int = 2**16, /) -> bytes:
        nonlocal reads
        reads += 1
        if reads > 1000:  # all of them took days
            pytest.fail("reads on and on beyond the archive's end")
        return read(reader, size)

    monkeypatch.setattr(reviews._BoundedReader, "read", counted)
    with pytest.raises(ValueError, match="cut short"):
        read_reviews(tmp_path / "reviews.tar")
    assert reads > 0

"""Laws of the corpora readers."""

import codecs
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstm_jax.text import (
    build_char_vocabulary,
    lanes,
    python_documentation,
    read_lines,
    read_text,
)

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_error(path: str | os.PathLike[str]) -> str:
    with pytest.raises(ValueError) as caught:
        read_text(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1
    assert repr(os.fspath(path)) in message
    assert ";" in message
    return message


@same_folder
@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8")), max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from([b"", codecs.BOM_UTF8]),
)
def test_line_ends_and_byte_order_mark_leave_no_trace(
    tmp_path: Path, lines: list[str], end: str, mark: bytes
) -> None:
    file = tmp_path / "text"
    lines = ["a", *lines]
    file.write_bytes(mark + end.join(lines).encode())
    assert read_text(file) == "\n".join(lines)
    assert read_text(str(file)) == read_text(file)


@same_folder
@given(
    lines=st.lists(
        st.text(
            st.sampled_from("ab \t\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029")
            | st.characters(codec="utf-8")
        )
        .map(lambda line: re.sub("[\0\n]", "", line).rstrip("\r"))
        .filter(lambda line: not line.startswith("\ufeff"))
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from([b"", codecs.BOM_UTF8]),
)
def test_no_other_character_ends_a_line(
    tmp_path: Path, lines: list[str], end: str, mark: bytes
) -> None:
    file = tmp_path / "lines"
    file.write_bytes(mark + "".join(line + end for line in lines).encode())
    assert read_lines(file) == [*lines, ""]


@same_folder
@given(st.binary())
def test_any_bytes_give_their_text_or_one_clear_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bytes"
    file.write_bytes(content)
    try:
        text = read_text(file)
    except ValueError:
        read_error(file)
    else:
        assert text.strip()
        assert "\r" not in text and "\0" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no text"),
        (b" \r\n\t", "no text"),
        (codecs.BOM_UTF8, "no text"),
        (codecs.BOM_UTF8 + "caf\u00e9".encode("latin-1"), "offset 6"),
        (b"ok\xffok", "offset 2"),
        (b"cut \xe2\x82", "cut off within its last character (byte 0xe2 at offset 4)"),
        (b"\xed\xa0\x80", "offset 0"),
        ("text".encode("utf-16"), "-f UTF-16"),
        (b"caf\xe9", "iconv"),
        (b"\x7fELF\0\0", "binary file (NUL at byte 4)"),
    ],
)
def test_unusable_content(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(content)
    message = read_error(file)
    assert words in message


def test_unusable_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert "does not exist" in read_error(tmp_path / "nothing\nhere")
    assert "folder" in read_error(tmp_path)
    assert "cannot be read" in read_error(tmp_path / "file" / "below")
    assert "cannot be read" in read_error("n" * 5000)
    assert "not a possible path" in read_error("a\0b")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    # The superuser may read everything, so the refusal is played.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "permission" in read_error(tmp_path / "secret")


def test_documentation_is_clean_prose() -> None:
    text = python_documentation()
    assert text == python_documentation()
    assert len(text) > 300_000
    assert "\n\n\n" not in text and "\r" not in text and "\0" not in text and "\t" not in text
    assert text == text.strip("\n") + "\n"
    assert text.startswith('The "assert" statement\n')


def test_documentation_holds_every_topic_once() -> None:
    from pydoc_data.topics import topics

    text = python_documentation()
    rest = text
    for topic in dict.fromkeys(topics[key] for key in sorted(topics)):
        body = re.sub(r"\n{3,}", "\n\n", topic.strip("\n"))
        assert rest.startswith(body)
        rest = rest[len(body) :].lstrip("\n")
    assert rest == ""


def test_python_without_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"pydoc_data.*text file") as caught:
        python_documentation()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif("LSTM_JAX_DATA" not in os.environ, reason="LSTM_JAX_DATA is not set")
def test_anna() -> None:
    text = read_text(Path(os.environ["LSTM_JAX_DATA"]) / "anna.txt")
    vocabulary = build_char_vocabulary(text)
    ids = vocabulary.encode(text)
    assert (len(text), len(vocabulary), len(ids)) == (1_985_223, 83, 1_985_223)
    assert vocabulary.decode(ids) == text
    assert lanes(ids, batch_size=100, sequence_length=100).batches == 198


def test_a_text_can_be_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert read_text(path) == "one\ntwo\nthree\n"
    assert read_text(path, as_is=True) == "\ufeffone\r\ntwo\rthree\n"

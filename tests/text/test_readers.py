"""Laws of the corpora readers."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import DATA, real_corpora, refusal, write

from lstm_jax.text import build_char_vocabulary, lanes, python_documentation, read_lines, read_text


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8")), max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_line_ends_and_byte_order_mark_leave_no_trace_unless_asked_for(
    tmp_path: Path, lines: list[str], end: str, mark: str
) -> None:
    lines = ["a", *lines]
    file = write(tmp_path / "text", mark + end.join(lines))
    assert read_text(file) == read_text(str(file)) == "\n".join(lines)
    assert read_text(file, as_is=True) == mark + end.join(lines)


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
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_no_other_character_ends_a_line(
    tmp_path: Path, lines: list[str], end: str, mark: str
) -> None:
    file = write(tmp_path / "lines", mark + "".join(line + end for line in lines))
    assert read_lines(file) == [*lines, ""]


def test_documentation_is_clean_prose_and_holds_every_topic_once() -> None:
    from pydoc_data.topics import topics

    text = python_documentation()
    assert len(text) > 300_000
    assert "\n\n\n" not in text and "\r" not in text and "\0" not in text and "\t" not in text
    assert text == text.strip("\n") + "\n"
    rest = text
    for topic in dict.fromkeys(topics[key] for key in sorted(topics)):
        body = re.sub(r"\n{3,}", "\n\n", topic.strip("\n"))
        assert rest.startswith(body)
        rest = rest[len(body) :].lstrip("\n")
    assert rest == ""


def test_python_without_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert re.search(r"pydoc_data.*text file", refusal(python_documentation))


@real_corpora
def test_anna() -> None:
    text = read_text(DATA / "anna.txt")
    vocabulary = build_char_vocabulary(text)
    ids = vocabulary.encode(text)
    assert (len(text), len(vocabulary), len(ids)) == (1_985_223, 83, 1_985_223)
    assert vocabulary.decode(ids) == text
    assert lanes(ids, batch_size=100, sequence_length=100).batches == 198

"""Files that can't be used: each reader names what is wrong, where, and the cure, in one line."""

import codecs
import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from refusals import file_refusal, refusal, write

from lstm_jax.systems.poems import build_poem_vocabulary
from lstm_jax.systems.published import published_vocabulary
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    encode_review,
    read_lines,
    read_reviews,
    read_text,
    read_vectors,
)

read_some_vectors = partial(read_vectors, vocabulary=build_review_vocabulary([["the"]]))
Reader = Callable[[Path], object]
READERS: dict[str, Reader] = {
    "a.txt": read_text,
    "lines.txt": read_lines,
    "v.txt": read_some_vectors,
    "a.csv": read_reviews,
    "a.tar": read_reviews,
    "v.json": Vocabulary.load,
}


UNUSABLE = "does not exist|is no existing file|cannot be read|not a possible path"


@pytest.mark.parametrize("name", READERS)
def test_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = READERS[name]
    write(tmp_path / "file", "text")
    for path in (f"nothing\nhere{name}", f"file/{name}", "n" * 5000 + name, "a\0b"):
        assert re.search(UNUSABLE, file_refusal(read, tmp_path / path))
    said = file_refusal(read, tmp_path)  # a folder, which holds no reviews
    assert "holds 'file'" in said or name == "v.txt"

    def refuse(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    write(tmp_path / name, "text")
    for module in ("builtins", "io"):
        monkeypatch.setattr(f"{module}.open", refuse)  # the superuser may read everything
    assert "Permission denied" in file_refusal(read, tmp_path / name)


TEXTS = [
    (b" \r\n\t", "no text"),
    (codecs.BOM_UTF8, "no text"),
    (codecs.BOM_UTF8 + "caf\u00e9".encode("latin-1"), "offset 6"),
    (b"ok\xffok", "offset 2"),
    (b"\xed\xa0\x80", "offset 0"),
    (b"\x7fELF\0\0", "binary file (NUL at byte 4)"),
]
VECTORS = [
    (b"\n \n", "empty"),
    (b"3 2\n", "none of the"),
    (b"other 1 2\n", "none of the"),
    (b"the\n", "line 1"),
    (b"the cat sat\n", "line 1"),
    (b"other 1 x\nthe 1 2\n", "line 1"),
    (b"a 1 2\nthe 1 2\nb 1\n", "line 3"),
    (b"a 1 2\nb 1 2 3\n", "line 2"),
    (b"9 3\nthe 1 2\n", "line 2"),
    (b"9 99999999999999999999\nthe 1 2\n", "line 1"),
    (b"9 0\nthe\n", "line 1"),
    *(
        (b"a 1 2\nthe 1 " + number + b"\n", "line 2")
        for number in (b"two", b"1_0", b"nan", b"-inf", b"1e39", b"1e999", b"\xff")
    ),
    (b"a" + b" 1" * 5000, "line 1"),
    (b"a 1 2\nb " + b"1" * 2**21, "line 2"),
    (b"1" * 2**21, "line 1"),
    (b"a 1 2\nthe 1 2\nb 1", "whole copy"),
    ("the 1 2\n".encode("utf-16"), "-f UTF-16"),
    (b"3 2\nthe \0\0\x80\x3f\0\0\x80\x3f\n", "binary"),
]
TABLES = [
    (b"", "text, review, sentence"),
    (b"a,1\nb,0\n", "0 columns"),
    (b"text,review,label\n", "2 columns"),
    (b"text,stars\n", "label, sentiment, target"),
    (b"text,label\n", "0 positive and 0 negative"),
    (b"text,label\na,1\n", "1 positive and 0 negative"),
    (b"text,label\na,1\nb\n", "line 3"),
    (b"text,label\na,1\nb,0,c\n", "line 3"),
    (b'text,label\n"a\nb",1\n\nc,2\n', "line 5"),
    (b"text,label\na,\n", "line 2"),
    (b"text,label\na,0.5\n", "'0.5'"),
    (b"text,label\na,False\n", "'False'"),
    (b'text,label\na,1\n"b,0\nc,d,1\n', "line 4"),
    (b'text,label\n"a"b,1\nc,d,0\n', "line 3"),
    (b"great film,1\nbad,0\n", "its first line names 'great film', '1'"),
    (b"text|label\na|1\nb|0\n", "commas, semicolons or tabs"),
    (b"text,label\n" + b"a" * 200_000 + b",1\n", "line 2"),
    (b"text,label\ncaf\xe9,1\n", "not UTF-8"),
    ("text,label\na,1\n".encode("utf-16"), "not UTF-8"),
]
VOCABULARY: dict[str, Any] = {
    "format_version": 1, "kind": "char", "unknown": None, "tokens": ["a", "b"]
}  # fmt: skip
FIELDS: list[tuple[str, tuple[Any, ...], str]] = [
    ("format_version", (2, 10**400), "upgrade"),
    ("format_version", (0, 1.0, True, "1"), "format_version"),
    ("kind", ("bytes", ["char"], None, "word\n"), "kind"),
    ("unknown", (2, -1, 10**400, 0.0, True, "0", float("nan"), float("-inf")), "unknown"),
    ("tokens", ([],), "at least one"),
    ("tokens", ("ab", {"a": 0}, None, ["a", 1], ["a", None], ["a", ["b"]]), "tokens"),
    ("tokens", (["a", "b", "a"],), "'a' occurs twice"),
    ("tokens", (["\n", "\n"],), "twice"),
    ("tokens", (["a", ""],), "token 1"),
    ("tokens", (["ab"],), "token 0"),
    ("tokens", (["\ud800"],), "surrogate"),
    ("extra", (1,), "extra"),
]
VOCABULARIES = [
    *(
        (json.dumps({**VOCABULARY, field: value}).encode(), said)
        for field, values, said in FIELDS
        for value in values
    ),
    *(
        (json.dumps({key: VOCABULARY[key] for key in VOCABULARY if key != field}).encode(), field)
        for field in VOCABULARY
    ),
    *((whole, "") for whole in (b"\0" * 100, b"null", b"[]", b"NaN", b"1" * 10_000, b"\xff\xfe{}")),
    *((whole, "") for whole in (b'{"unknown": 1e999999}', b"[" * 200_000, b"\xef\xbb\xbf{}")),
]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (name, *row)
        for name, rows in {
            "a.txt": TEXTS, "v.txt": VECTORS, "a.csv": TABLES, "v.json": VOCABULARIES
        }.items()
        for row in rows
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_contents(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    assert said in file_refusal(READERS[name], tmp_path / name, content)


SURROGATES = ["\ud83d", "a\udc00b", "\ude00\ud83d"]


@pytest.mark.parametrize(
    ("build", "impossible"),
    [
        (build_char_vocabulary, ["", *SURROGATES]),
        (build_char_vocabulary("ab", unknown=True).encode, SURROGATES),
        (partial(build_char_vocabulary, unknown=True), [""]),
        (build_word_vocabulary, [[], "one text", ["two words"], [""], ["\ud83d"]]),
        (build_review_vocabulary, [[["two words"]], [[""]], [], [[]]]),
        (build_poem_vocabulary, [[], [""], ["a\0b"], ["\ud800"]]),
        (published_vocabulary, [[], ["a"] * 5, "one str"]),
        (partial(Vocabulary, "char"), [["a"]]),
        (partial(encode_review, build_word_vocabulary(["a"]), length=3), [["a"]]),
    ],
)
def test_vocabularies_that_cannot_be(build: Callable[[Any], object], impossible: list[Any]) -> None:
    for given in impossible:
        refusal(build, given)

"""Laws of the bytes that are no UTF-8 text: what is said of them is true, and helps."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from refusals import file_refusal, refusal

from lstm_jax.text import build_review_vocabulary, read_lines, read_reviews, read_text, read_vectors
from lstm_jax.text.decoding import decode

TEXTS = {
    "french": "Le caf\u00e9 noir, \u00e0 c\u00f4t\u00e9 de l'\u00e9t\u00e9.\n",
    "english": "He said \u201chello\u201d \u2014 don\u2019t you see\u2026\n",
    "czech": "P\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148\n",
    "russian": "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! "
    "\u041c\u043e\u0441\u043a\u0432\u0430\n",
    "simplified": "\u6625\u7720\u4e0d\u89c9\u6653\uff0c\u5904\u5904\u95fb\u557c\u9e1f\u3002\n",
    "traditional": "\u6625\u7720\u4e0d\u89ba\u66c9\uff0c\u8655\u8655\u805e\u557c\u9ce5\u3002\n",
    "japanese": "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002\u540d\u524d\u306f\u307e\u3060\n",
    "korean": "\uc548\ub155\ud558\uc138\uc694. \ub098\ub294 \ud559\uad50\uc5d0\n",
}


NAMES = {
    "french": {
        "latin-1": "WINDOWS-1252",
        "utf-16-le": "UTF-16LE",
        "utf-32": "UTF-32",
        "utf-32-be": "UTF-32BE",
        "mac-roman": None,
    },
    "english": {"cp1252": "WINDOWS-1252"},
    "czech": {"cp1250": None},
    "russian": {
        "cp1251": "WINDOWS-1251",
        "koi8-r": "KOI8-R",
        "utf-16-be": "UTF-16BE",
        "cp866": None,
    },
    "simplified": {"gbk": "GB18030", "utf-16": "UTF-16", "utf-16-le": "UTF-16LE"},
    "traditional": {"big5": "BIG5", "gbk": "GB18030"},
    "japanese": {"shift_jis": "SHIFT_JIS", "euc-jp": "EUC-JP"},
    "korean": {"euc-kr": "EUC-KR"},
}


@pytest.mark.parametrize(
    ("language", "encoding", "named"),
    [(language, *each) for language, names in NAMES.items() for each in names.items()],
)
def test_an_encoding_is_named_with_what_the_bytes_say_in_it(
    language: str, encoding: str, named: str | None
) -> None:
    for text in (TEXTS[language], "Plain lines\nbefore it\n" + TEXTS[language] * 40):
        raw = text.encode(encoding)
        message = refusal(decode, raw, "'f'")
        found = dict(re.findall(r"([A-Z0-9_-]+) \('(.*?)'\)", message))
        told = re.findall(r"iconv -f (\S+)", message)
        assert (named is None) == (not found)
        for name, excerpt in found.items():
            assert " ".join(raw.decode(name).split()).count(excerpt)
        if named is not None:
            assert " ".join(text.split()).count(found[named])
        # A command that can be copied is right; where two encodings are likely, it names neither.
        assert told == [named if len(found) == 1 else "ENCODING"]


@pytest.mark.parametrize("before", ["na\u00efve ", "plain caf"])
@pytest.mark.parametrize("last", ["\u00e9", "\u2019", "\u4e00", "\U0001f600"])
def test_a_cut_within_the_last_character_is_named(before: str, last: str) -> None:
    whole = last.encode()
    # After one byte of three or four in ASCII text, it may be a letter of another encoding.
    for kept in range(1 + (before.isascii() and len(whole) > 2), len(whole)):
        message = refusal(decode, before.encode() + whole[:kept], "'f'")
        assert "cut off within its last character" in message
        assert f"offset {len(before.encode())}" in message and "iconv" not in message
    assert "WINDOWS-1252 ('Un caf\u00e9')" in refusal(decode, b"Un caf\xe9", "'f'")


@pytest.mark.parametrize("damage", [b"\xff", b"\xe9", b"\xc3"])
@pytest.mark.parametrize("language", ["russian", "simplified", "korean"])
def test_damaged_utf_8_is_told_from_other_encodings(language: str, damage: bytes) -> None:
    text = (TEXTS[language] * 40).encode()
    message = refusal(decode, text + damage + b" " + text, "'f'")
    assert f"damaged (byte 0x{damage.hex()} at offset {len(text)});" in message
    twice = refusal(decode, (text + damage + b" ") * 2, "'f'")
    assert "and in 1 more place;" in twice


@pytest.mark.parametrize(
    "text", ["Some words, " * 20 + "\0 and the end", "The cat \0 x", "caf\u00e9 \0", "\0"]
)
def test_a_stray_nul_is_no_encoding(text: str) -> None:
    raw = text.encode()
    message = refusal(decode, raw, "'f'")
    assert f"binary file (NUL at byte {raw.index(0)}); give a plain UTF-8" in message
    assert "UTF-16" not in message


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
        return file.getvalue()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("[Content_Types].xml" if kind == "docx" else "a.txt", "text")
    return file.getvalue()


PACKED = {
    "gunzip": gzip.compress(b"text"),
    "bunzip2": bz2.compress(b"text"),
    "unxz": lzma.compress(b"text"),
    "unzip": archive("zip"),
    "tar -xf": archive("tar"),
    "pdftotext": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "plain text (UTF-8)": archive("docx"),
}


@pytest.mark.parametrize("cure", PACKED)
def test_every_reader_says_how_to_unpack(tmp_path: Path, cure: str) -> None:
    vectors = partial(read_vectors, vocabulary=build_review_vocabulary([["the"]]))
    readers = [("a.txt", read_text), ("lines.txt", read_lines), ("vectors.txt", vectors)]
    readers += [("a.csv", read_reviews), ("reviews.zip", read_reviews)]
    if cure not in ("tar -xf", "gunzip"):  # which are read
        readers.append(("a.tar.gz", read_reviews))
    for name, read in readers:
        assert cure in file_refusal(read, tmp_path / name, PACKED[cure])


@pytest.mark.parametrize("text", ["BZh is no word", "PK", "7z", "%PDF", "ustar" * 100])
def test_a_text_may_begin_like_an_archive(text: str) -> None:
    assert decode(text.encode(), "'f'") == text

"""Labelled reviews for a sentiment classifier: reading data sets, and encoding words as ids."""

import csv
import gzip
import io
import os
import re
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lstm_jax.files import contents, one_line, reason
from lstm_jax.text.decoding import decode, refuse_packed
from lstm_jax.text.ids import Ids
from lstm_jax.text.vocabulary import Vocabulary, by_frequency

PAD, START, UNKNOWN, UNUSED = range(4)  # special tokens of a review vocabulary

_SPECIAL = ("<pad>", "<start>", "<unknown>", "<unused>")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_TABLES = {".csv": (",", ";", "\t"), ".tsv": ("\t", ",", ";")}
# How a quoted field escapes a quote: doubled, or with a backslash.
_QUOTINGS: tuple[dict[str, Any], ...] = ({}, {"escapechar": "\\"})
_TEXT_COLUMNS = ("text", "review", "sentence")
_LABEL_COLUMNS = ("label", "sentiment", "target")
_LABELS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
_MOST_REVIEWS = 1_000_000
_MOST_BYTES = 4 * 2**30
_LONGEST_REVIEW = 2**20
_READS_AFTER_END = 100
_SEPARATOR_LINE = re.compile(r"\"?sep=([,;|\t])\"?(?=\r?\n)", re.IGNORECASE)
_REVIEW = re.compile(r"(?:^|/)(?:(train|test)/)?(pos|neg)/([^/.][^/]*\.txt)\Z", re.IGNORECASE)
# What tarfile and zlib raise for invalid bytes.
_DAMAGE = (tarfile.TarError, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError,
           RecursionError)  # fmt: skip

_Pairs = list[tuple[str, int]]  # texts and labels
_Rows = Iterator[tuple[int, list[str]]]  # each with the number of its first line
_Key = tuple[str, str, str]  # "train", "test" or ""; "pos" or "neg"; the file name


class Reviews(NamedTuple):
    """N texts and their labels, int32 [N]; 1 is positive, 0 is negative."""

    texts: tuple[str, ...]
    labels: NDArray[np.int32]


class ReviewSet(NamedTuple):
    """Training reviews and, if available, test reviews."""

    training: Reviews
    test: Reviews | None


def read_reviews(path: str | os.PathLike[str]) -> ReviewSet:
    """Read a folder, an archive or a table of labelled reviews; all text is UTF-8.

    A folder has the layout of the Large Movie Review Dataset (Maas et al. 2011), in any case: files
    `{train,test}/{pos,neg}/NAME.txt`, in it or in its sub-folder `aclImdb`. Without `train`, the
    files of `{pos,neg}` are for training; `test` is optional. A `.tar`, `.tar.gz` or `.tgz`
    contains this layout at any depth, and is read as a stream. Other files, links and names that
    begin with a dot are ignored. Positive reviews come first, then files are ordered by name, with
    numbers in numeric order.

    The header of a `.csv` or `.tsv` has a column `text`, `review` or `sentence`, and a column
    `label`, `sentiment` or `target` of 0 or 1, neg or pos, negative or positive, all in any case; a
    field has at most 131,072 characters. The separator is given by a first line such as `sep=;`,
    else it is the first of comma, semicolon and tab (of a `.tsv`: tab first) that fits. If every
    line has as many fields as the header, and a label, each line is a row, and quotes that do not
    close, or close within a text, are plain characters. Otherwise texts may contain line ends: the
    table is read with quotes inside quotes doubled or, if that does not fit all of its rows,
    escaped by backslashes.

    Raises:
        ValueError: a one-line message with the file, the problem and the cure: unreadable, damaged,
            not UTF-8, wrong layout or columns, a wrong row (by its line), a duplicate review file,
            only one label in training, or too much data: a review of over 1 MiB, over 1,000,000
            reviews, or over 4 GiB in all (of an archive: unpacked).
    """
    place, shown = Path(path), repr(os.fspath(path))
    try:
        if place.is_dir():
            return _sorted_set(_folder_files(place), shown, f", and {contents(place)}")
        if place.is_file():
            if place.suffix.lower() in _TABLES:
                return _read_table(place, shown)
            if place.name.lower().endswith(_ARCHIVES):
                return _sorted_set(_archive_files(place, shown), shown)
            with open(place, "rb") as file:
                refuse_packed(file.read(tarfile.BLOCKSIZE), shown)
    except OSError as error:
        name = error.filename or os.fspath(path)
        raise ValueError(
            f"{name!r} cannot be read ({reason(error)}); give a readable one"
        ) from None
    problem = "is no table or archive of reviews" if place.exists() else "does not exist"
    raise ValueError(f"{shown} {problem}; give a folder, .tar, .tar.gz, .csv or .tsv of reviews")


def build_review_vocabulary(texts: Iterable[list[str]], size: int = 10_000) -> Vocabulary:
    """Return the vocabulary of the most frequent words of `texts`, with `size` tokens, at least 5.

    Ids 0 to 3 are `<pad>`, `<start>`, `<unknown>` (for every other word) and `<unused>`, as in
    Keras's IMDB data; up to `size - 4` words follow by falling frequency, ties in code point order.
    `texts` are the words of each review, as `review_words` splits it. Raises ValueError if there
    are no words, or something is not a word.
    """
    counts = Counter(chain.from_iterable(texts))
    for token in _SPECIAL:
        counts.pop(token, None)
    if not counts:
        raise ValueError("cannot build a vocabulary from no words; give texts that have some")
    kept = by_frequency(counts)[: size - len(_SPECIAL)]
    return Vocabulary("word", (*_SPECIAL, *kept), UNKNOWN)


def encode_review(
    vocabulary: Vocabulary, words: list[str], length: int, keep: Literal["last", "first"] = "last"
) -> Ids:
    """Return the id of `<start>` and the ids of `words`, of these the last or first `length`.

    So with the last ones kept, a review of at least `length` words has no start id. Words outside
    the vocabulary or spelt like a special token become `UNKNOWN`. There are min(len(words) + 1,
    length) ids. Raises ValueError if the vocabulary is not a review vocabulary.
    """
    if vocabulary.tokens[: len(_SPECIAL)] != _SPECIAL or vocabulary.unknown != UNKNOWN:
        raise ValueError("this is no review vocabulary; make one with build_review_vocabulary")
    ids = vocabulary.encode_tokens(words[-length:] if keep == "last" else words[:length])
    ids[ids < len(_SPECIAL)] = UNKNOWN
    ids = np.concatenate([np.array([START], np.int32), ids])
    return ids[-length:] if keep == "last" else ids[:length]


def _sorted_set(files: Iterable[tuple[_Key, bytes]], shown: str, holds: str = "") -> ReviewSet:
    """Return the decoded files in sorted order, whatever order they come in."""
    found: dict[_Key, str] = {}
    total = 0
    for key, raw in files:
        name = f"{'/'.join(filter(None, key))!r} of {shown}"
        total += len(raw)
        if key in found:
            raise ValueError(f"{name} is there twice; pack every review once")
        if len(raw) > _LONGEST_REVIEW:
            raise ValueError(f"{name} is longer than {_LONGEST_REVIEW} bytes; shorten or remove it")
        if len(found) >= _MOST_REVIEWS or total > _MOST_BYTES:
            raise ValueError(f"{shown} has over {_MOST_REVIEWS} reviews or 4 GiB; give a part")
        found[key] = decode(raw, name).removeprefix("\ufeff")
    halves: dict[str, _Pairs] = {"train": [], "test": [], "": []}
    for key in sorted(found, key=_file_order):
        halves[key[0]].append((found[key], int(key[1] == "pos")))
    return _review_set(halves["train"] or halves[""], halves["test"], shown, holds)


def _review_set(training: _Pairs, test: _Pairs, shown: str, holds: str = "") -> ReviewSet:
    """Return the texts and labels of each half; an empty `test` becomes None."""
    positive = sum(label for _, label in training)
    if not 0 < positive < len(training):
        raise ValueError(
            f"{shown} has {positive} positive and {len(training) - positive} negative reviews for "
            f"training{holds}; give some of both, as files "
            "{train,test}/{pos,neg}/NAME.txt or {pos,neg}/NAME.txt, or as rows of a table"
        )
    learnt, tested = (
        Reviews(tuple(text for text, _ in pairs), np.array([label for _, label in pairs], np.int32))
        for pairs in (training, test)
    )
    return ReviewSet(learnt, tested if test else None)


def _file_order(key: _Key) -> tuple[bool, list[tuple[str, int, str]], str]:
    _, label, name = key
    # Without leading zeros, the longer number is the larger; int() limits the number of digits.
    parts = re.findall(r"([^0-9]*)0*([0-9]*)", name)
    return label == "neg", [(text, len(digits), digits) for text, digits in parts], name


def _folder_files(folder: Path) -> Iterator[tuple[_Key, bytes]]:
    roots = [folder, *_folders([folder], "aclimdb")]
    halves = [*roots, *_folders(roots, "train", "test")]
    for file in (file for half in _folders(halves, "pos", "neg") for file in half.iterdir()):
        match = _REVIEW.search(file.relative_to(folder).as_posix())
        if match and file.is_file() and not file.is_symlink():
            with open(file, "rb") as opened:
                yield _key(match), opened.read(_LONGEST_REVIEW + 1)


def _folders(above: Iterable[Path], *names: str) -> list[Path]:
    """The sub-folders of these names, in upper or lower case."""
    found = (each for folder in above for each in folder.iterdir() if each.name.lower() in names)
    return [each for each in found if each.is_dir()]


def _key(match: re.Match[str]) -> _Key:
    split, label, name = match.groups("")
    return split.lower(), label.lower(), name


class _RefusedError(Exception):
    """Why reading an archive was aborted."""


class _BoundedReader(io.RawIOBase):
    """Unpacked bytes of an archive, up to a limit, since a small file can unpack to terabytes."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = _MOST_BYTES
        self._after_end = 0

    def read(self, size: int = 2**16, /) -> bytes:
        content = self._file.read(size)
        self._after_end = 0 if content else self._after_end + 1
        # tarfile reads block by block up to the declared end of a member.
        if self._after_end > _READS_AFTER_END:
            raise _RefusedError("is damaged or cut short (a member ends after it); get a new copy")
        self._left -= len(content)
        if self._left < 0:
            raise _RefusedError("unpacks to over 4 GiB; give a part of it")
        return content


class _StrictTarInfo(tarfile.TarInfo):
    """A header that raises where tarfile would assume the end of the archive or exhaust memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the zero block that ends an archive
            raise _RefusedError(f"is damaged or cut short ({error}); get a new copy") from None
        bulky = info.size > _LONGEST_REVIEW and info.type not in tarfile.REGULAR_TYPES
        if bulky or info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
            raise _RefusedError("has an oversized or sparse member; pack it anew with a plain tar")
        return info


def _archive_files(path: Path, shown: str) -> Iterator[tuple[_Key, bytes]]:
    with open(path, "rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
        packed = head.startswith(b"\x1f\x8b")  # browsers unpack downloads but keep their names
        if not packed and head[257:262] != b"ustar":
            refuse_packed(head, shown)
        file.seek(0)
        reader = _BoundedReader(gzip.GzipFile(fileobj=file) if packed else file)
        try:
            with tarfile.open(None, "r|", reader, tarinfo=_StrictTarInfo, encoding="utf-8") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    match = _REVIEW.search(member.name)
                    if match and member.isreg() and (content := tar.extractfile(member)):
                        yield _key(match), content.read(_LONGEST_REVIEW + 1)
            while reader.read():  # including the checksum at the end
                pass
            return
        except _RefusedError as error:
            problem = str(error)
        except _DAMAGE as error:
            why = one_line(error, 80) or type(error).__name__
            problem = f"is damaged or cut short ({why}); get a new copy"
    raise ValueError(f"{shown} {problem}")


class _UnfitError(Exception):
    """Where a table, read in one of several ways, is wrong: the line and the problem."""


def _read_table(path: Path, shown: str) -> ReviewSet:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{shown} has over 4 GiB; give a part of it")
    text = decode(path.read_bytes(), shown).removeprefix("\ufeff")
    separators: Iterable[str] = _TABLES[path.suffix.lower()]
    if match := _SEPARATOR_LINE.match(text):
        separators, text = match[1], text[match.end() :]
    failures: list[tuple[int, str]] = []
    ways: list[Callable[[str, str], _Rows]] = [_line_rows]
    ways += [partial(_quoted_rows, each) for each in _QUOTINGS]
    for separator, read in product(separators, ways):
        try:
            return _review_set(_pairs(read(text, separator)), [], shown)
        except _UnfitError as error:
            failures.append(error.args)
    # Report the attempt that came furthest, or among wrong headers the one with the most columns.
    line, problem = max(failures, key=lambda failure: (failure[0], failure[1].count("', '")))
    raise ValueError(f"{f'line {line} of ' * (line > 0)}{shown} {problem}")


def _pairs(rows: _Rows) -> _Pairs:
    """Return the texts and labels of the rows after the header."""
    _, header = next(rows, (0, []))
    text_at, label_at = (_column(header, names) for names in (_TEXT_COLUMNS, _LABEL_COLUMNS))
    pairs: _Pairs = []
    for line, row in rows:
        if len(row) != len(header):
            raise _UnfitError(line, f"has {len(row)} columns, not {len(header)}; quote texts")
        label, text = row[label_at].strip(), row[text_at]
        if label.lower() not in _LABELS:
            raise _UnfitError(line, f"has the label {label[:40]!r}; use {', '.join(_LABELS)}")
        if len(text) > csv.field_size_limit():
            raise _UnfitError(line, f"has over {csv.field_size_limit()} characters; shorten it")
        if len(pairs) >= _MOST_REVIEWS:
            raise _UnfitError(line, f"makes over {_MOST_REVIEWS} reviews; give a part")
        pairs.append((text, _LABELS[label.lower()]))
    return pairs


def _column(header: list[str], names: tuple[str, ...]) -> int:
    found = [at for at, name in enumerate(header) if name.strip().lower() in names]
    if len(found) == 1:
        return found[0]
    raise _UnfitError(
        0,
        f"has {len(found)} columns named {', '.join(names)}: its first line names "
        f"{', '.join(map(repr, header))[:200]}; name just one so, in a header such as text,label, "
        "with commas, semicolons or tabs between",
    )


def _line_rows(text: str, separator: str) -> _Rows:
    """Yield the rows of a table whose texts contain no line ends."""
    columns = None
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.removesuffix("\r"):
            row = _fields(stripped, separator, columns)
            columns = columns or len(row)
            yield number, row


def _fields(line: str, separator: str, columns: int | None) -> list[str]:
    """Return the fields of a line, without quotes if that fits the number of columns."""
    for quoting in _QUOTINGS:
        try:
            row = next(csv.reader([line], delimiter=separator, strict=True, **quoting))
        except csv.Error:
            continue
        if columns in (None, len(row)):
            return row
    return line.split(separator)


def _quoted_rows(quoting: dict[str, Any], text: str, separator: str) -> _Rows:
    """Yield the non-empty rows of a table whose quoted texts may contain line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, **quoting)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise _UnfitError(
            line,
            f"begins a row that cannot be read ({error}); close the quotes of each text and double "
            "those inside it",
        ) from None

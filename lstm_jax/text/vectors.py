"""Word vectors from a file, such as GloVe's, as the first values of an embedding table."""

import os
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_jax.files import reason
from lstm_jax.text.decoding import decode, refuse_packed
from lstm_jax.text.vocabulary import Vocabulary

_Vector = NDArray[np.float64]

Missing = Literal["drawn", "zeros"]

_WIDEST = 4096
_LONGEST_LINE = 2**20
# Past it, sums of squares and float32 are no longer safe; it refuses inf as well.
_LARGEST = 1e30


class WordVectors(NamedTuple):
    """One vector for each of the V tokens of a vocabulary.

    Attributes:
        table: float32 [V, E]; row 0, the padding, is zeros.
        found: how many words of the vocabulary have a vector of the file.
        missing: the words that have not, in the order of their ids; no tokens in angle brackets.
    """

    table: NDArray[np.float32]
    found: int
    missing: tuple[str, ...]


def read_vectors(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    missing: Missing = "drawn",
) -> WordVectors:
    """Read the vectors of the words of `vocabulary` from a text file of one vector a line.

    A line is `word v1 ... vE`, single spaces between, UTF-8 (GloVe: Pennington et al. 2014). Its
    last E fields are the numbers, for a few of GloVe's words hold spaces (`. . .`), but no such
    word may end in a number. A first line `count E`, as in the text format of word2vec, gives E and
    is skipped; without it the numbers that end the first vector's line are counted. Blank lines are
    skipped. LF and CRLF end a line, and no other character does. A word that comes again keeps its
    first vector. The file is read as a stream, and only lines of words of the vocabulary, and the
    first one, are parsed into numbers.

    Words without a vector (GloVe has a contraction such as `don't` only in parts, so it is one) and
    tokens in angle brackets draw theirs from a normal distribution of mean 0 and the standard
    deviation of all numbers found, or are zeros, as token 0, the padding, is always.

    Args:
        path: the file.
        vocabulary: its token 0 is padding (`Vocabulary.padding` is not None).
        seed: of the vectors drawn; the same seed draws the same.
        missing: what a word without a vector gets, "drawn" or "zeros".

    Raises:
        ValueError: a vocabulary without padding, a file that cannot be read or is
            empty, a line of another width (or E over 4,096), something that is no finite number of
            usual size (below 1e30), or no word of the vocabulary in the file.
    """
    shown = repr(os.fspath(path))
    if vocabulary.padding is None:
        raise ValueError(
            f"token 0 is {vocabulary.tokens[0][:40]!r}, but row 0 is for padding; "
            "use a vocabulary that begins with <pad>"
        )
    try:
        if not Path(path).is_file():
            raise ValueError(f"{shown} is no existing file; give a file of word vectors")
        with open(path, "rb") as file:
            head = file.read(2**16)
            refuse_packed(head, shown)
            if 0 in head:
                decode(head, shown)  # which refuses it
            file.seek(0)
            vectors = _read_found(file, vocabulary, shown)
    except OSError as error:
        raise ValueError(
            f"{shown} cannot be read ({reason(error)}); give a readable file"
        ) from None
    if not vectors:
        raise ValueError(
            f"{shown} has a vector for none of the {len(vocabulary)} tokens; "
            "give vectors of the language of the vocabulary, in lower case"
        )
    return _fill(vectors, vocabulary, np.random.default_rng(seed) if missing == "drawn" else None)


def _words(vocabulary: Vocabulary) -> Iterator[tuple[int, str]]:
    """Yield ids and tokens, but for the padding and the special ones in angle brackets."""
    for token_id, token in enumerate(vocabulary.tokens):
        if token_id and not (token.startswith("<") and token.endswith(">")):
            yield token_id, token


def _read_found(file: IO[bytes], vocabulary: Vocabulary, shown: str) -> dict[int, _Vector]:
    """Return the vectors [E] of the file by the id of their word."""
    id_of = {word.encode("utf-8"): token_id for token_id, word in _words(vocabulary)}
    vectors: dict[int, _Vector] = {}
    width = 0
    for number, line in _lines(file, shown):
        where = f"line {number} of {shown}"
        if not width:
            fields = line.split()
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                width = _checked_width(int(fields[1][:9]), where)
                continue
            width = _checked_width(_numbers(line), where)
            _parse(line, width, where)
        word = line[: line.find(b" ")]
        if line.count(b" ") != width:
            word = line.rsplit(b" ", width)[0]
            if (found := _numbers(line)) != width:
                raise ValueError(
                    f"{where} has {found} numbers, not {width}; give a word and {width} numbers a "
                    "line, with single spaces, or get a whole copy if that's the last line"
                )
        token_id = id_of.pop(word.strip(b" "), None)
        if token_id is not None:
            vectors[token_id] = _parse(line, width, where)
    if not width:
        raise ValueError(f"{shown} is empty; give a file of lines such as 'word 0.1 -0.2'")
    return vectors


def _lines(file: IO[bytes], shown: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank and their numbers, with single spaces between fields.

    White space is what ASCII has; a word may hold others, such as a no-break space.
    """
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise ValueError(
                f"line {number} of {shown} is longer than any vector; give a text file of a word "
                "and its numbers a line"
            )
        stripped = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip()
        if b"\t" in stripped or b"  " in stripped:
            stripped = re.sub(rb"[ \t]+", b" ", stripped)
        if stripped:
            yield number, stripped


def _checked_width(width: int, where: str) -> int:
    if not 1 <= width <= _WIDEST:
        raise ValueError(
            f"{where} gives vectors of {width} numbers, not 1 to {_WIDEST}; "
            "give a text file of a word and its numbers a line, with single spaces"
        )
    return width


def _numbers(line: bytes) -> int:
    """Return how many fields at the end of a line are numbers; the first field is none."""
    numbers = map(_number, line.split(b" ")[:0:-1])
    return sum(1 for _ in takewhile(lambda number: number is not None, numbers))


def _number(field: bytes) -> float | None:
    try:
        # float() takes 1_000 for a number, as Python's source does.
        return float(field.replace(b"_", b"?"))
    except ValueError:
        return None


def _parse(line: bytes, width: int, where: str) -> _Vector:
    numbers = [_number(field) for field in line.rsplit(b" ", width)[1:]]
    vector = np.array([np.nan if number is None else number for number in numbers])
    # NaN compares False, so it is refused here as well.
    if not (np.abs(vector) < _LARGEST).all():
        raise ValueError(
            f"{where} holds something that is no finite number below {_LARGEST:g}; "
            "give a word and its numbers a line, with single spaces"
        )
    return vector


def _fill(
    vectors: dict[int, _Vector], vocabulary: Vocabulary, rng: np.random.Generator | None
) -> WordVectors:
    """Return the table of `vectors` by id; other rows are drawn, or zeros without `rng`."""
    ids = sorted(vectors)
    found = np.stack([vectors[token_id] for token_id in ids])
    shape = (len(vocabulary), found.shape[1])
    table = np.zeros(shape) if rng is None else rng.normal(0.0, found.std(), shape)
    table[ids] = found
    table[0] = 0.0
    missing = (word for token_id, word in _words(vocabulary) if token_id not in vectors)
    return WordVectors(table.astype(np.float32), len(vectors), tuple(missing))

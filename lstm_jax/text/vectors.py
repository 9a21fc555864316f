"""Word vectors from a file, such as GloVe's, as initial values of an embedding table."""

import os
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_jax.files import reason
from lstm_jax.text.decoding import decode, refuse_packed
from lstm_jax.text.vocabulary import Vocabulary

Missing = Literal["drawn", "zeros"]

_WIDEST = 4096
_LONGEST_LINE = 2**20
# Beyond this, sums of squares in float32 could overflow; it also refuses inf.
_LARGEST = 1e30
_CURE = "give a text file of a word and its numbers a line, with spaces between"


class WordVectors(NamedTuple):
    """One vector for each of the V tokens of a vocabulary.

    Attributes:
        table: float32 [V, E]; row 0, the padding, is zeros.
        found: number of words in the vocabulary that have a vector in the file.
        missing: words without one, in order of their ids, without tokens in angle brackets.
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
    """Read the vectors of the words of `vocabulary` from a text file with one vector per line.

    A line is `word v1 ... vE`, in UTF-8 (GloVe: Pennington et al. 2014). Its last E fields are the
    numbers, as a few of GloVe's words contain spaces (`. . .`), but no such word may end in a
    number. A first line `count E`, as in word2vec's text format, gives E and is skipped; otherwise
    E is the number of numbers at the end of the first line. Blank lines are skipped, and only LF
    ends a line. A repeated word keeps its first vector; unknown words' numbers are not parsed.

    Raises ValueError if the vocabulary has no padding, the file is unreadable or empty, a line has
    another width (or E is over 4,096), a number is not finite or not below 1e30, or no word of the
    vocabulary is in the file.

    Args:
        path: the file, which is read as a stream.
        vocabulary: its token 0 must be padding (`Vocabulary.padding`), whose vector is zeros.
        seed: seed of the vectors drawn.
        missing: vectors of words not in the file and of tokens in angle brackets: "zeros", or
            "drawn" from a normal distribution with mean 0 and the found numbers' standard
            deviation.
    """
    shown = repr(os.fspath(path))
    if vocabulary.padding is None:
        raise ValueError(
            f"token 0 is {vocabulary.tokens[0][:40]!r}, but row 0 is for padding; "
            "use a vocabulary that begins with <pad>"
        )
    id_of = {
        token: token_id
        for token_id, token in enumerate(vocabulary.tokens)
        if token_id and not (token.startswith("<") and token.endswith(">"))
    }
    try:
        if not Path(path).is_file():
            raise ValueError(f"{shown} is no existing file; give a file of word vectors")
        with open(path, "rb") as file:
            head = file.read(2**16)
            refuse_packed(head, shown)
            if 0 in head:
                decode(head, shown)  # raises the error
            file.seek(0)
            vectors = _read_found(file, {word.encode(): id_of[word] for word in id_of}, shown)
    except OSError as error:
        raise ValueError(
            f"{shown} cannot be read ({reason(error)}); give a readable file"
        ) from None
    if not vectors:
        raise ValueError(
            f"{shown} has a vector for none of the {len(vocabulary)} tokens; "
            "give vectors of the language of the vocabulary, in lower case"
        )
    ids = sorted(vectors)
    found = np.stack([vectors[token_id] for token_id in ids])
    shape = (len(vocabulary), found.shape[1])
    drawn = np.random.default_rng(seed).normal(0.0, found.std(), shape)
    table = drawn if missing == "drawn" else np.zeros(shape)
    table[ids] = found
    table[0] = 0.0
    without = tuple(word for word, token_id in id_of.items() if token_id not in vectors)
    return WordVectors(table.astype(np.float32), len(vectors), without)


def _read_found(
    file: IO[bytes], id_of: dict[bytes, int], shown: str
) -> dict[int, NDArray[np.float64]]:
    """Return the vectors [E] by the ids of their words, which are taken out of `id_of`."""
    vectors: dict[int, NDArray[np.float64]] = {}
    width = 0
    for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), b""), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        where = f"line {number} of {shown}"
        if not (fields := line.split() if not width else line.rsplit(None, width)):
            continue
        if not width:
            is_header = number == 1 and len(fields) == 2 and all(map(bytes.isdigit, fields))
            width = int(fields[1][:9]) if is_header else _numbers(fields)
            if not 1 <= width <= _WIDEST or len(line) == _LONGEST_LINE:
                raise ValueError(
                    f"{where} gives vectors of {width} numbers, not 1 to {_WIDEST}; {_CURE}"
                )
            if is_header:
                continue
            fields = line.rsplit(None, width)
        word = fields[0].lstrip()
        _, space, end = word.replace(b"\t", b" ").rpartition(b" ")
        if len(fields) <= width or (space and _number(end) is not None):
            raise ValueError(
                f"{where} has {_numbers(line.split())} numbers, not {width}; {_CURE}, or get a "
                "whole copy if that's the last line"
            )
        if (token_id := id_of.pop(word, None)) is not None:
            vector = np.array([_number(field) for field in fields[1:]], np.float64)
            # None becomes NaN, for which the comparison is False.
            if not (np.abs(vector) < _LARGEST).all():
                raise ValueError(
                    f"{where} holds something that is no finite number below {_LARGEST:g}; {_CURE}"
                )
            vectors[token_id] = vector
    if not width:
        raise ValueError(f"{shown} is empty; {_CURE}")
    return vectors


def _numbers(fields: list[bytes]) -> int:
    """Return how many fields at the end of a line are numbers, not counting the first field."""
    numbers = map(_number, fields[:0:-1])
    return sum(1 for _ in takewhile(lambda number: number is not None, numbers))


def _number(field: bytes) -> float | None:
    try:
        # float() accepts 1_000, as Python source does.
        return float(field.replace(b"_", b"?"))
    except ValueError:
        return None

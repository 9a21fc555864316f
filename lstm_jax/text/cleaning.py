"""Cleaning as published models did it, flaws included, so that their figures can be compared."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.vocabulary import UNKNOWN_WORD, Vocabulary

UNUSED_WORD = "<unused>"

_LINE_END = re.compile("\r\n|\r|\n")
# The published character class joins these without escaping: its "\]" is an escaped bracket, so
# the backslash is no member and stays in the text.
_PUBLISHED_PUNCTUATION = set(string.punctuation) - set("-'\\")


def first_characters(
    text: str, count: int | None, *, line_ends: Literal["keep", "space", "drop"]
) -> str:
    """Return the first `count` characters of `text` once its line ends are dealt with.

    Args:
        text: any text; its line ends are LF, CRLF and CR, each one of them.
        count: how many characters of the result to keep; None for all, and all if it has fewer.
        line_ends: "keep" leaves them alone, "space" makes each a space, "drop" takes them out.
    """
    if line_ends != "keep":
        text = _LINE_END.sub(" " if line_ends == "space" else "", text)
    return text[:count]


def published_shakespeare_words(text: str, *, skip: int = 7675) -> list[str]:
    r"""Return the lower-cased words of `text` as a published TensorFlow word model split it.

    The first `skip` characters go. Line ends (LF, CRLF) are deleted, not replaced, so the last
    word of a line and the first of the next become one: the flaw that this reproduces. Then every
    ASCII punctuation character except `-`, `'` and the backslash acts as a space. To get ids, pass
    the words to `Vocabulary.encode_tokens`: `encode` would split a few of them again.

    Args:
        text: the whole file.
        skip: the characters of its preface, counted in `text` as it is; 7675 is for a file whose
            line ends are CRLF, two characters each.

    Raises:
        ValueError: `text` has no more than `skip` characters.
    """
    if len(text) <= skip:
        raise ValueError(
            f"skipping {skip} characters leaves nothing of a text of {len(text)}; "
            "lower skip or give more text"
        )
    joined = text[skip:].replace("\r\n", "").replace("\n", "")
    spaced = joined.translate({ord(character): " " for character in _PUBLISHED_PUNCTUATION})
    return spaced.lower().split()


def build_published_word_vocabulary(words: Iterable[str], *, more_than: int = 5) -> Vocabulary:
    """Return the vocabulary of that model: the words that occur more than `more_than` times.

    Id 0 is "unknown" and stands for every other word; the rest follow from id 1 in the order of
    their first occurrence. The published table has one id that no word is given, which is filled
    with `UNUSED_WORD` here: the place of the literal word "unknown" where that is frequent (its
    id was overwritten by 0), the last id where it is not. So F frequent words make F + 1 or F + 2
    tokens.

    Args:
        words: the words of the text, with repetitions.
        more_than: the occurrences of the most frequent word that is left out; at least 0.

    Raises:
        ValueError: no words, or none frequent enough.
    """
    counts = Counter(words)  # which keeps the order of first occurrence
    frequent = [word for word, count in counts.items() if count > more_than]
    if not frequent:
        raise ValueError(
            f"no word occurs more than {more_than} times, the most frequent one "
            f"{max(counts.values(), default=0)}; lower more_than or give more text"
        )
    if UNKNOWN_WORD in frequent:
        frequent[frequent.index(UNKNOWN_WORD)] = UNUSED_WORD
    else:
        frequent.append(UNUSED_WORD)
    return Vocabulary("word", (UNKNOWN_WORD, *frequent), 0)


def published_batches(
    ids: npt.ArrayLike, *, batch_size: int, sequence_length: int
) -> tuple[Ids, Ids]:
    """Return inputs and targets, int32 [S, T, B] each, as that model cut its stream `ids` [N].

    The stream is cut into S = N // (B * T) + 1 pieces of nearly equal length, each repeated from
    its start until it fills B rows of T, one after another. The targets of a row are the row
    rolled by one, so its last target is its own first word: the flaw that this reproduces. A
    column of the result is such a row.

    Raises:
        ValueError: a piece would be empty, or `ids` are not ids.
    """
    stream = as_ids(ids)
    pieces = len(stream) // (batch_size * sequence_length) + 1
    if len(stream) < pieces:
        raise ValueError(
            f"{len(stream)} tokens cannot be cut into {pieces} pieces, none empty; "
            "give more text, or use a larger batch size or sequence length"
        )
    shape = (batch_size, sequence_length)
    rows_SBT = np.stack([np.resize(piece, shape) for piece in np.array_split(stream, pieces)])
    inputs = np.ascontiguousarray(rows_SBT.swapaxes(1, 2))
    return inputs, np.roll(inputs, -1, axis=1)

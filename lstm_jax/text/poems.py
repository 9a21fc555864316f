"""Poems, one a line as `title:poem`: reading, counting, and their characters by frequency."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from lstm_jax.text.checks import check_size
from lstm_jax.text.vocabulary import Vocabulary

PADDING_CHARACTER = "\0"


class Poems(NamedTuple):
    """What `read_poems` kept, and what it met on the way.

    Attributes:
        poems: the poems kept, in the order of the text, without white space.
        lines: the lines that are not blank.
        empty: the lines with a title only.
        repeated: the poems that an earlier line holds too, kept or not. An empty poem after the
            first one is repeated as well, so it counts here and in `empty`.
        malformed: the lines without a colon.
        cut: the poems among those kept that were longer than `length`.
    """

    poems: tuple[str, ...]
    lines: int
    empty: int
    repeated: int
    malformed: int
    cut: int


def read_poems(
    text: str,
    *,
    length: int = 50,
    keep: Literal["first", "last"] = "first",
    drop_empty: bool = True,
    drop_repeated: bool = True,
) -> Poems:
    """Read the poems of `text`, one a line as `title:poem`; blank lines are ignored.

    The poem is what follows the first ':'. A full-width colon separates only in a line without
    the ASCII one: long titles of the Tang corpus quote sentences that hold it.

    Args:
        text: the lines, each ended by a line feed.
        length: the most characters of a poem.
        keep: which characters of a longer poem are kept, its first or its last `length`.
        drop_empty: leave out poems without a character; else they are empty strings.
        drop_repeated: leave out a poem equal, before cutting, to one of an earlier line.

    Raises:
        ValueError: no poem is left, `length` is not a positive integer, or a wrong `keep`.
    """
    check_size("length", length)
    if keep not in ("first", "last"):
        raise ValueError(f"keep must be 'first' or 'last', got {keep!r}; choose one of the two")
    lines = [line for line in text.split("\n") if line.strip()]
    bodies = [body for body in map(_body, lines) if body is not None]
    first_line = {body: line for line, body in reversed(list(enumerate(bodies)))}
    kept = [
        body
        for line, body in enumerate(bodies)
        if (body or not drop_empty) and (first_line[body] == line or not drop_repeated)
    ]
    empty, malformed = bodies.count(""), len(lines) - len(bodies)
    if not kept:
        raise ValueError(
            f"no poem is left of {len(lines)} lines ({malformed} without a colon, {empty} without "
            "a poem); give one poem a line, as title:poem"
        )
    part = slice(length) if keep == "first" else slice(-length, None)
    return Poems(
        poems=tuple(body[part] for body in kept),
        lines=len(lines),
        empty=empty,
        repeated=len(bodies) - len(first_line),
        malformed=malformed,
        cut=sum(len(body) > length for body in kept),
    )


def build_poem_vocabulary(poems: Iterable[str]) -> Vocabulary:
    r"""Return the characters of `poems`, the most frequent first; id 0 is the padding "\0".

    Equally frequent characters follow in code point order, so the order of the poems does not
    matter. A character outside the vocabulary is an error when a text is encoded.

    Raises:
        ValueError: no characters, one str instead of poems, a poem that holds the padding
            character, or a lone surrogate.
    """
    if isinstance(poems, str):
        raise ValueError("poems must be a sequence of poems, got one str; pass [poem]")
    counts: Counter[str] = Counter()
    for poem in poems:
        counts.update(poem)
    if not counts:
        raise ValueError("the poems hold no characters to build a vocabulary from; give some text")
    if PADDING_CHARACTER in counts:
        raise ValueError("a poem holds the character U+0000, which is the padding; remove it")
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    return Vocabulary("char", (PADDING_CHARACTER, *ordered), None)


def _body(line: str) -> str | None:
    """Return the poem of a line without white space, None where there is no colon."""
    for colon in (":", "："):  # noqa: RUF001
        _, found, body = line.partition(colon)
        if found:
            return "".join(body.split())
    return None

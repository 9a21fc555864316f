"""Split a text into words."""

import re
import unicodedata

END_OF_LINE = "<eos>"

_JOINERS = "\u200c\u200d"  # zero width: used in Persian and Indic spelling
_ZERO_WIDTH_SPACE = "\u200b"
# Possessive quantifiers, so that a long run of blanks after "<" is scanned only once.
_LINE_BREAK = re.compile(r"<\s*+/?+\s*+br\s*+/?+\s*+>")


def words(text: str) -> list[str]:
    """Split `text` into lower-cased words.

    A word is a run of letters, combining marks and numbers of any script (Unicode categories L, M
    and N), `-` (U+002D) and `'` (U+0027). Format characters (Cf) do not end a word: the two
    zero-width joiners are kept, and all others but the zero-width space, such as soft hyphens, are
    removed. Marks belong to the preceding character, so a word does not begin with one. Every other
    character, including punctuation, symbols, control characters and white space, acts as a space.
    Typographic apostrophes and dashes count as punctuation; a run of only `-` and `'` is a word.

    The result is a fixed point: `words(" ".join(words(text))) == words(text)`.
    """
    lowered = text.lower()
    # Categories are looked up once per distinct character.
    kinds = {char: unicodedata.category(char) for char in set(lowered)}
    table = {ord(char): _in_words(char, kind) for char, kind in kinds.items()}
    marks = _JOINERS + "".join(char for char, kind in kinds.items() if kind[0] == "M")
    found = (run.rstrip(_JOINERS).lstrip(marks) for run in lowered.translate(table).split())
    return [word for word in found if word]


def tokens_of_lines(text: str) -> list[str]:
    """Split a tokenized text, such as the Penn Treebank or WikiText.

    Tokens are separated by white space. Each line end (LF) is the token `<eos>`, also that of an
    empty line.
    """
    return text.replace("\n", f" {END_OF_LINE} ").split()


def review_words(text: str) -> list[str]:
    """Split `text` into lower-cased words for a classifier of reviews.

    A word is a run of letters, combining marks and numbers of any script (Unicode categories L, M
    and N) and of apostrophes inside it: U+0027, and U+2019, which becomes U+0027. Apostrophes at
    the ends of a word are treated as quotes and dropped. Every other character acts as a space, and
    so does an HTML line break in any spelling, such as `<br />` or `</BR>`.

    The result is a fixed point: `review_words(" ".join(review_words(text))) == review_words(text)`.
    """
    lowered = _LINE_BREAK.sub(" ", text.lower())
    table = {ord(char): " " for char in set(lowered) if unicodedata.category(char)[0] not in "LMN"}
    table |= {ord("'"): "'", 0x2019: "'"}
    stripped = (word.strip("'") for word in lowered.translate(table).split())
    return [word for word in stripped if word]


def _in_words(char: str, kind: str) -> str:
    """Return what replaces a character before the text is split at white space."""
    if char in "-'" or char in _JOINERS or kind[0] in "LMN":
        return char
    return "" if kind == "Cf" and char != _ZERO_WIDTH_SPACE else " "

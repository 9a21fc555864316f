"""Tokenizers: a text to the list of its words."""

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # zero width: Persian and Indic scripts spell with them
_ZERO_WIDTH_SPACE = "\u200b"
# Possessive quantifiers: a long run of blanks after "<" is passed over once.
_LINE_BREAK = re.compile(r"<\s*+/?+\s*+br\s*+/?+\s*+>")


def words(text: str) -> list[str]:
    """Split `text` into lower-cased words.

    A word is a run of letters, combining marks and numbers of any script (Unicode categories L, M
    and N), `-` (U+002D) and `'` (U+0027). Format characters (Cf) end no word: the two zero-width
    joiners stay inside it, soft hyphens and all others but the zero-width space are left out.
    Marks belong to what they follow, so a word does not begin with one. Every other character, be
    it punctuation, a symbol, a control character or any kind of white space, acts as a space.
    Typographic apostrophes and dashes are punctuation like the rest; a run of only `-` and `'` is
    a word.

    The result is a fixed point: `words(" ".join(words(text))) == words(text)`.
    """
    lowered = text.lower()
    # Categories are looked up once per distinct character, not once per character.
    kinds = {char: unicodedata.category(char) for char in set(lowered)}
    table = {ord(char): _in_words(char, kind) for char, kind in kinds.items()}
    marks = _JOINERS + "".join(char for char, kind in kinds.items() if kind[0] == "M")
    found = (run.rstrip(_JOINERS).lstrip(marks) for run in lowered.translate(table).split())
    return [word for word in found if word]


def review_words(text: str) -> list[str]:
    """Split `text` into lower-cased words, as a classifier of reviews reads it.

    A word is a run of letters, combining marks and numbers of any script (Unicode categories L, M
    and N) and of apostrophes inside it: U+0027, and U+2019, which becomes U+0027. Apostrophes at
    the ends of a word are quotes and dropped. Every other character acts as a space, and so does
    the line break of HTML in any spelling, such as `<br />` or `</BR>`.

    The result is a fixed point: `review_words(" ".join(review_words(text))) == review_words(text)`.
    """
    lowered = _LINE_BREAK.sub(" ", text.lower())
    table = {ord(char): " " for char in set(lowered) if unicodedata.category(char)[0] not in "LMN"}
    table |= {ord("'"): "'", 0x2019: "'"}
    stripped = (word.strip("'") for word in lowered.translate(table).split())
    return [word for word in stripped if word]


def _in_words(char: str, kind: str) -> str:
    """Return what a character becomes before the text is split at its white space."""
    if char in "-'" or char in _JOINERS or kind[0] in "LMN":
        return char
    return "" if kind == "Cf" and char != _ZERO_WIDTH_SPACE else " "

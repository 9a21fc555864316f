"""Tokenizers: a text to the list of its words."""

import unicodedata


def words(text: str) -> list[str]:
    """Split `text` into lower-cased words.

    A word is a run of letters, combining marks and numbers of any script (Unicode categories L, M
    and N), `-` (U+002D) and `'` (U+0027). Every other character, be it punctuation, a symbol, a
    control or format character or any kind of white space, acts as a space. Typographic
    apostrophes and dashes are punctuation like the rest; a run of only `-` and `'` is a word.

    The result is a fixed point: `words(" ".join(words(text))) == words(text)`.
    """
    lowered = text.lower()
    # Categories are looked up once per distinct character, not once per character.
    spaces = {ord(char): " " for char in set(lowered) if not _belongs_to_word(char)}
    return lowered.translate(spaces).split()


def _belongs_to_word(char: str) -> bool:
    return char in "-'" or unicodedata.category(char)[0] in "LMN"

"""Vocabularies: the two-way map between tokens and int32 ids, its builders and its file format."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from lstm_jax.files import one_line, reason, write_whole
from lstm_jax.settings import CountOrZero, check, from_json
from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.readers import read_text
from lstm_jax.text.tokenizers import words as split_words

FORMAT_VERSION = 1
UNKNOWN_CHARACTER = "\ufffd"
UNKNOWN_WORD = "unknown"
PADDING_TOKENS = ("\0", "<pad>")
"""Tokens that no text contains; one of them with id 0 pads sequences."""

_FIELDS = ("kind", "tokens", "unknown")
_LISTED_AT_MOST = 10


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id.

    Attributes:
        kind: "char", one token per Unicode code point, or "word", one per word of
            `lstm_jax.text.words`.
        tokens: every token once; its position is its id.
        unknown: the id that stands for tokens outside the vocabulary; None makes them an error.

    Raises:
        ValueError: no tokens, a repeated token, a token that is not one character or one word, or
            an `unknown` that is no id.

    Examples:
        >>> from lstm_jax.text import Vocabulary
        >>> vocabulary = Vocabulary("char", ("a", "b", "c"))
        >>> ids = vocabulary.encode("cab")
        >>> ids.tolist(), vocabulary.decode(ids)
        ([2, 0, 1], 'cab')
    """

    kind: Literal["char", "word"]
    tokens: tuple[str, ...]
    unknown: CountOrZero | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be encoded, decoded and saved without loss."""
        check(self)
        if not self.tokens:
            raise ValueError("a vocabulary needs at least one token; build it from some text")
        if self.unknown is not None and self.unknown >= len(self.tokens):
            raise ValueError(
                f"unknown is {self.unknown}; it must be None or an id below {len(self.tokens)}"
            )
        for position, token in enumerate(self.tokens):
            if (len(token) != 1) if self.kind == "char" else (token.split() != [token]):
                raise ValueError(f"token {position} is not one {self._noun}; split it")
        _code_points("".join(self.tokens), holder="the list of tokens")
        if len(set(self.tokens)) != len(self.tokens):
            ((repeated, _),) = Counter(self.tokens).most_common(1)
            raise ValueError(f"token {repeated[:40]!r} occurs twice; list every token once")

    def __len__(self) -> int:
        """Return the number of tokens; ids run from 0 to one below it."""
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        """Return whether it is one of the tokens."""
        return token in self._id_of_token

    @property
    def padding(self) -> int | None:
        """The id, 0, that pads sequences; None if there is none."""
        return 0 if self.tokens[0] in PADDING_TOKENS else None

    def encode(self, text: str) -> Ids:
        """Return the ids [N] of the N tokens of `text`, int32; N is 0 for an empty text.

        Raises:
            ValueError: a token outside the vocabulary while `unknown` is None (up to ten of them
                are named), or a lone surrogate in the text of a "char" vocabulary.
        """
        if self.kind == "word":
            return self.encode_tokens(self.split(text))
        code_points = _code_points(text)
        ids = self._id_of_code_point[code_points]
        if self.unknown is None and (ids < 0).any():
            raise self._outside(map(chr, np.unique(code_points[ids < 0]).tolist()))
        return ids

    def encode_tokens(self, tokens: Sequence[str]) -> Ids:
        """Return the ids [N] of a text split in tokens already.

        Raises:
            ValueError: a token outside the vocabulary while `unknown` is None.
        """
        id_of = self._id_of_token
        if self.unknown is None and (missing := [token for token in tokens if token not in id_of]):
            raise self._outside(missing)
        ids = (id_of.get(token, self.unknown) for token in tokens)
        return np.fromiter(cast(Iterable[int], ids), np.int32, count=len(tokens))

    def encode_prompt(self, prompt: str, *, name: str = "prompt") -> Ids:
        """Return the ids [N] of what a model is to go on from, `in_known_form`; N is at least 1.

        Args:
            prompt: the text.
            name: what errors call it.

        Raises:
            ValueError: the prompt holds no token, or one outside the vocabulary.
        """
        try:
            ids = self.encode(self.in_known_form(prompt))
        except ValueError as error:
            raise ValueError(f"{name} {prompt!r} cannot be used: {error}") from None
        if not ids.size:
            what = f"holds no {self._noun}" if prompt.strip() else "is empty"
            raise ValueError(f"{name} {prompt!r} {what}; give at least one {self._noun}")
        return ids

    def split(self, text: str) -> list[str]:
        """Return the N tokens of `text`, those outside the vocabulary included."""
        return split_words(text) if self.kind == "word" else list(text)

    def in_known_form(self, text: str) -> str:
        """Return `text` with each word in the Unicode normal form that the vocabulary knows best.

        Composed (NFC) and decomposed (NFD) letters look the same, but are different tokens. A word
        stays as it is unless one of these forms has fewer tokens outside the vocabulary.
        """

        def outside(form: str) -> int:
            return sum(token not in self for token in self.split(form))

        def best(word: re.Match[str]) -> str:
            forms = (unicodedata.normalize(form, word[0]) for form in ("NFC", "NFD"))
            return min((word[0], *forms), key=outside)

        return text if text.isascii() or not outside(text) else re.sub(r"\S+", best, text)

    def outside(self, text: str) -> list[str]:
        """Return the tokens of `text` that the vocabulary lacks in every normal form, each once."""
        tokens = dict.fromkeys(self.split(self.in_known_form(text)))
        return [token for token in tokens if token not in self]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of `ids` [N]: characters joined by nothing, words by one space.

        Raises:
            ValueError: not one-dimensional integers, or an id outside the vocabulary.
        """
        checked = as_ids(ids)
        if checked.size and checked.max() >= len(self):
            raise ValueError(
                f"id {checked.max()} is outside this vocabulary of {len(self)} tokens; "
                "decode with the vocabulary that the ids were made with"
            )
        return (" " if self.kind == "word" else "").join(self._token_array[checked].tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types; `from_dict` is the inverse."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the vocabulary that `to_dict` described, trusting nothing in `data`.

        Raises:
            ValueError: a field missing, unexpected, of the wrong type or value, or a newer format.
        """
        fields = dict(data) if isinstance(data, Mapping) else {}
        version = fields.pop("format_version", None)
        if type(version) is int and version > FORMAT_VERSION:
            raise ValueError(
                f"its format_version is newer than {FORMAT_VERSION}, the newest known; upgrade "
                "lstm_jax"
            )
        if version != FORMAT_VERSION or type(version) is not int or len(fields) < len(_FIELDS):
            raise ValueError(
                f"it lacks a field, or format_version is not {FORMAT_VERSION}; it must have "
                f"format_version, {', '.join(_FIELDS)}"
            )
        return from_json(cls, fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to `path` as UTF-8 JSON: all of it or, if anything fails, none of it.

        Raises:
            ValueError: `path` cannot be written.
        """
        content = json.dumps(self.to_dict(), ensure_ascii=False, indent=0) + "\n"
        try:
            write_whole(path, content.encode())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot write the vocabulary {os.fspath(path)!r} ({reason(error)}); "
                "give a file in an existing folder that may be written"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, trusting nothing in the file.

        Raises:
            ValueError: one line that names the file, what is wrong with it and the cure.
        """
        text = read_text(path)
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} is not a vocabulary this version can load: "
                f"{one_line(error)} (or restore it from a good copy; save the vocabulary anew)"
            ) from None

    @property
    def _noun(self) -> str:
        return "word" if self.kind == "word" else "character"

    @cached_property
    def _token_array(self) -> npt.NDArray[np.object_]:
        return np.array(self.tokens, dtype=object)

    @cached_property
    def _id_of_token(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    @cached_property
    def _id_of_code_point(self) -> Ids:
        """Id by code point, that of the unknown token or -1 where there is none."""
        table = np.full(0x110000, -1 if self.unknown is None else self.unknown, np.int32)
        table[_code_points("".join(self.tokens))] = np.arange(len(self), dtype=np.int32)
        return table

    def _outside(self, tokens: Iterable[str]) -> ValueError:
        is_word, missing = self.kind == "word", list(dict.fromkeys(tokens))
        shown = (f"{each!r}" if is_word else f"{each!r} (U+{ord(each):04X})" for each in missing)
        more = len(missing) - _LISTED_AT_MOST
        return ValueError(
            f"the text holds {len(missing)} {self._noun}{'s' * (len(missing) > 1)} outside the "
            f"vocabulary: {', '.join([*shown][:_LISTED_AT_MOST])}{f' and {more} more' * (more > 0)}"
            "; remove them, build the vocabulary from a text that holds them, or build it with an "
            "unknown token"
        )


def build_char_vocabulary(text: str, *, unknown: bool = False) -> Vocabulary:
    r"""Return the vocabulary of the characters of `text`, sorted by code point.

    With `unknown`, id 0 is the token "\ufffd" for all characters outside it; one that stands in
    the text itself is that same token.

    Raises:
        ValueError: `text` is empty, or holds a lone surrogate.
    """
    if not text:
        raise ValueError("cannot build a vocabulary from an empty text; give some text")
    characters = sorted(set(text))
    if not unknown:
        return Vocabulary("char", tuple(characters))
    known = (char for char in characters if char != UNKNOWN_CHARACTER)
    return Vocabulary("char", (UNKNOWN_CHARACTER, *known), 0)


def build_word_vocabulary(words: Iterable[str], *, min_count: int = 1) -> Vocabulary:
    """Return the vocabulary of the words that occur `min_count` times or more.

    Id 0 is "unknown" and stands for every other word; the rest follow by falling frequency, equal
    ones in code point order, so the order of `words` does not matter. The literal word "unknown"
    is that same token: it has id 0 and no second entry, whatever its count.

    Args:
        words: the words of the text, with repetitions, as `lstm_jax.text.words` splits it.
        min_count: rarer words are left out; at least 1.

    Raises:
        ValueError: no words, or none frequent enough.
    """
    counts = Counter(words)
    if max(counts.values(), default=0) < min_count:
        raise ValueError(
            f"no word occurs {min_count} times, the most frequent one "
            f"{max(counts.values(), default=0)}; lower min_count or give more text"
        )
    counts.pop(UNKNOWN_WORD, None)
    frequent = [word for word in by_frequency(counts) if counts[word] >= min_count]
    return Vocabulary("word", (UNKNOWN_WORD, *frequent), 0)


def by_frequency(counts: Counter[str]) -> list[str]:
    """Return the tokens by falling frequency, equally frequent ones in code point order."""
    return sorted(counts, key=lambda token: (-counts[token], token))


def _code_points(text: str, *, holder: str = "the text") -> npt.NDArray[np.uint32]:
    """Return the code points [N] of `text`."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32, copy=False)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{holder} holds a lone surrogate, U+{ord(text[error.start]):04X} at position "
            f"{error.start}; drop it, e.g. text.encode('utf-8', 'ignore').decode('utf-8')"
        ) from None

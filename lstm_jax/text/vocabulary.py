"""Vocabularies: the mapping between tokens and int32 ids, its builders and its file format."""

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

from lstm_jax.files import listed, one_line, reason, write_whole
from lstm_jax.settings import CountOrZero, check, from_json
from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.readers import read_text
from lstm_jax.text.tokenizers import tokens_of_lines
from lstm_jax.text.tokenizers import words as split_words

FORMAT_VERSION = 1
UNKNOWN_CHARACTER = "\ufffd"
UNKNOWN_WORD = "unknown"
UNKNOWN_TOKEN = "<unk>"  # in texts that are cut into tokens already
PADDING_TOKENS = ("\0", "<pad>")
"""Tokens that occur in no text; one of them with id 0 pads sequences."""

_FIELDS = ("kind", "tokens", "unknown")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens and their ids.

    Attributes:
        kind: "char", a token per Unicode code point; "word", one per `lstm_jax.text.words`; or
            "token", one per `lstm_jax.text.tokens_of_lines`.
        tokens: each token once; its position is its id.
        unknown: id that stands for tokens outside the vocabulary; None makes them an error.

    Raises:
        ValueError: there are no tokens, a token is repeated or not one character or word, or
            `unknown` is not an id.

    Examples:
        >>> from lstm_jax.text import Vocabulary
        >>> vocabulary = Vocabulary("char", ("a", "b", "c"))
        >>> ids = vocabulary.encode("cab")
        >>> ids.tolist(), vocabulary.decode(ids)
        ([2, 0, 1], 'cab')
    """

    kind: Literal["char", "word", "token"]
    tokens: tuple[str, ...]
    unknown: CountOrZero | None = None

    def __post_init__(self) -> None:
        """Refuse anything that cannot be encoded, decoded and saved without loss."""
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
        """Return the number of tokens."""
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        """Return whether this is one of the tokens."""
        return token in self._id_of_token

    @property
    def padding(self) -> int | None:
        """The id that pads sequences, 0, or None."""
        return 0 if self.tokens[0] in PADDING_TOKENS else None

    def encode(self, text: str) -> Ids:
        """Return the ids [N] of the N tokens of `text`, int32; an empty text gives N = 0.

        Raises:
            ValueError: a token is outside the vocabulary and `unknown` is None (up to ten are
                named), or the text of a "char" vocabulary contains a lone surrogate.
        """
        if self.is_of_words:
            return self.encode_tokens(self.split(text))
        code_points = _code_points(text)
        ids = self._id_of_code_point[code_points]
        if self.unknown is None and (ids < 0).any():
            raise self._outside(map(chr, np.unique(code_points[ids < 0]).tolist()))
        return ids

    def encode_tokens(self, tokens: Sequence[str]) -> Ids:
        """Return the ids [N] of a text that is already split into tokens.

        Raises:
            ValueError: a token is outside the vocabulary and `unknown` is None.
        """
        id_of = self._id_of_token
        if self.unknown is None and (missing := [token for token in tokens if token not in id_of]):
            raise self._outside(missing)
        ids = (id_of.get(token, self.unknown) for token in tokens)
        return np.fromiter(cast(Iterable[int], ids), np.int32, count=len(tokens))

    def encode_prompt(self, prompt: str, *, name: str = "prompt") -> Ids:
        """Return the ids [N] of a prompt, `in_known_form`; N is at least 1.

        Error messages call the prompt `name`.

        Raises:
            ValueError: the prompt has no tokens, or one outside the vocabulary.
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
        """Return the N tokens of `text`, including those outside the vocabulary."""
        if self.kind == "token":
            return tokens_of_lines(text)
        return split_words(text) if self.kind == "word" else list(text)

    def in_known_form(self, text: str) -> str:
        """Return `text` with each word in the Unicode normal form that the vocabulary knows best.

        Composed (NFC) and decomposed (NFD) letters look the same, but are different tokens. A word
        is unchanged unless one of these forms has fewer tokens outside the vocabulary.
        """

        def outside(form: str) -> int:
            return sum(token not in self for token in self.split(form))

        def best(word: re.Match[str]) -> str:
            forms = (unicodedata.normalize(form, word[0]) for form in ("NFC", "NFD"))
            return min((word[0], *forms), key=outside)

        return text if text.isascii() or not outside(text) else re.sub(r"\S+", best, text)

    def outside(self, text: str) -> list[str]:
        """Return the distinct tokens of `text` that the vocabulary lacks in every normal form."""
        tokens = dict.fromkeys(self.split(self.in_known_form(text)))
        return [token for token in tokens if token not in self]

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of `ids` [N]: characters concatenated, words joined by one space.

        Raises:
            ValueError: ids are not one-dimensional integers, or one is outside the vocabulary.
        """
        checked = as_ids(ids)
        if checked.size and checked.max() >= len(self):
            raise ValueError(
                f"id {checked.max()} is outside this vocabulary of {len(self)} tokens; "
                "decode with the vocabulary that the ids were made with"
            )
        between = " " if self.is_of_words else ""
        return between.join(self.tokens[token_id] for token_id in checked.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary as plain JSON types; the inverse of `from_dict`."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the vocabulary described by untrusted `data` from `to_dict`.

        Raises:
            ValueError: a field is missing, unexpected or invalid, or the format is newer.
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
        """Write the vocabulary to `path` atomically, as UTF-8 JSON.

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
        """Read what `save` wrote, without trusting the file.

        Raises:
            ValueError: a one-line message with the file, the problem and the cure.
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
    def is_of_words(self) -> bool:
        """Whether white space separates its tokens."""
        return self.kind != "char"

    @property
    def _noun(self) -> str:
        return "word" if self.is_of_words else "character"

    @cached_property
    def _id_of_token(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}

    @cached_property
    def _id_of_code_point(self) -> Ids:
        """Ids by code point; those not in the vocabulary map to `unknown`, or to -1 without one."""
        table = np.full(0x110000, -1 if self.unknown is None else self.unknown, np.int32)
        table[_code_points("".join(self.tokens))] = np.arange(len(self), dtype=np.int32)
        return table

    def _outside(self, tokens: Iterable[str]) -> ValueError:
        is_word, missing = self.is_of_words, list(dict.fromkeys(tokens))
        shown = [repr(each) + ("" if is_word else f" (U+{ord(each):04X})") for each in missing]
        return ValueError(
            f"the text holds {len(missing)} {self._noun}{'s' * (len(missing) > 1)} outside the "
            f"vocabulary: {listed(shown)}; remove them, build the vocabulary from a text that "
            "holds them, or build it with an unknown token"
        )


def build_char_vocabulary(text: str, *, unknown: bool = False) -> Vocabulary:
    r"""Return the vocabulary of the characters of `text`, sorted by code point.

    With `unknown`, id 0 is the token "\ufffd" for all other characters; if the text contains that
    character, it is the same token. Raises ValueError if `text` is empty or contains a lone
    surrogate.
    """
    if not text:
        raise ValueError("cannot build a vocabulary from an empty text; give some text")
    characters = sorted(set(text))
    if not unknown:
        return Vocabulary("char", tuple(characters))
    known = (char for char in characters if char != UNKNOWN_CHARACTER)
    return Vocabulary("char", (UNKNOWN_CHARACTER, *known), 0)


def build_word_vocabulary(
    words: Iterable[str], *, min_count: int = 1, kind: Literal["word", "token"] = "word"
) -> Vocabulary:
    """Return the vocabulary of the words that occur at least `min_count` times.

    Id 0 is "unknown" and stands for every other word; the rest follow by falling frequency, ties in
    code point order, so the order of `words` does not matter. The literal word "unknown" is the
    same token: it has id 0 and no second entry, whatever its count. Of kind "token" it is "<unk>".
    Raises ValueError if there are no words, or none is frequent enough.
    """
    counts = frequent(Counter(words), min_count)
    unknown = UNKNOWN_WORD if kind == "word" else UNKNOWN_TOKEN
    counts.pop(unknown, None)
    return Vocabulary(kind, (unknown, *by_frequency(counts)), 0)


def frequent(counts: Counter[str], min_count: int) -> Counter[str]:
    """Return the words that occur at least so often; raises ValueError if none does."""
    kept = Counter({word: count for word, count in counts.items() if count >= min_count})
    if not kept:
        raise ValueError(
            f"no word occurs {min_count} times, the most frequent one "
            f"{max(counts.values(), default=0)}; lower min_count or give more text"
        )
    return kept


def by_frequency(counts: Counter[str]) -> list[str]:
    """Return the tokens by falling frequency, ties in code point order."""
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

"""Vocabularies: the two-way map between tokens and int32 ids, its builders and its file format."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, cast

import numpy as np
import numpy.typing as npt

from lstm_jax.files import is_device, reason, write_whole
from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.tokenizers import words as split_words

FORMAT_VERSION = 1
UNKNOWN_CHARACTER = "\ufffd"
UNKNOWN_WORD = "unknown"
PADDING_TOKENS = ("\0", "<pad>")
"""Tokens that no text contains; one of them with id 0 pads sequences."""

_FIELDS = ("format_version", "kind", "unknown", "tokens")
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
    """

    kind: Literal["char", "word"]
    tokens: tuple[str, ...]
    unknown: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be encoded, decoded and saved without loss."""
        if self.kind not in ("char", "word"):
            raise ValueError("kind must be 'char' or 'word'; choose one of the two")
        _check_tokens(self.tokens, self.kind)
        # type() rather than isinstance(): True is an int, but no id.
        if self.unknown is not None and (
            type(self.unknown) is not int or not 0 <= self.unknown < len(self.tokens)
        ):
            raise ValueError(
                f"unknown must be None or an id from 0 to {len(self.tokens) - 1}; "
                "give the position of the unknown token"
            )

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
        return self._encode_characters(text)

    def encode_tokens(self, tokens: Sequence[str]) -> Ids:
        """Return the ids [N] of a text split in tokens already.

        Raises:
            ValueError: a token outside the vocabulary while `unknown` is None.
        """
        id_of = self._id_of_token
        if self.unknown is None:
            missing = dict.fromkeys(token for token in tokens if token not in id_of)
            if missing:
                raise _outside(self._noun, [repr(token) for token in missing])
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
            raise ValueError(f"{name} {prompt!r} is empty; give at least one {self._noun}")
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
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "unknown": self.unknown,
            "tokens": list(self.tokens),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the vocabulary that `to_dict` described, trusting nothing in `data`.

        Raises:
            ValueError: a field missing, unexpected, of the wrong type or value, or a newer format.
        """
        _check_fields(data)
        kind, tokens = data["kind"], data["tokens"]
        if not isinstance(kind, str):
            raise ValueError("kind must be 'char' or 'word'; choose one of the two")
        if not isinstance(tokens, list):
            raise ValueError("tokens must be a list of strings; list every token once")
        return cls(cast(Literal["char", "word"], kind), tuple(tokens), data["unknown"])

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
        shown = repr(os.fspath(path))
        if is_device(path):
            raise ValueError(f"{shown} is a device; give a file that Vocabulary.save wrote")
        try:
            raw = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot read the vocabulary {shown} ({reason(error)}); "
                "give a file that Vocabulary.save wrote"
            ) from None
        try:
            return cls.from_dict(_parse_json(raw))
        except ValueError as error:
            raise ValueError(
                f"{shown} is not a vocabulary this version can load: {error} "
                "(or save the vocabulary anew)"
            ) from None

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of the canonical JSON: equal if and only if equal.

        Canonical: `to_dict()` with sorted keys and no white space, as UTF-8.
        """
        canonical = json.dumps(
            self.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

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
        """Id by code point, -1 where there is none; the last entry is for all code points above."""
        code_points = _code_points("".join(self.tokens))
        table = np.full(int(code_points.max()) + 2, -1, np.int32)
        table[code_points] = np.arange(len(self), dtype=np.int32)
        return table

    def _encode_characters(self, text: str) -> Ids:
        table = self._id_of_code_point
        code_points = _code_points(text)
        ids = table[np.minimum(code_points, len(table) - 1)]
        missing = ids < 0
        if missing.any():
            if self.unknown is None:
                raise _outside("character", _characters(code_points[missing]))
            ids[missing] = self.unknown
        return ids


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
        return Vocabulary("char", tuple(characters), None)
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
    if not counts:
        raise ValueError("cannot build a vocabulary from no words; give a text that has some")
    if max(counts.values()) < min_count:
        raise ValueError(
            f"no word occurs {min_count} times, the most frequent one {max(counts.values())}; "
            "lower min_count or give more text"
        )
    counts.pop(UNKNOWN_WORD, None)
    frequent = (word for word, count in counts.items() if count >= min_count)
    return Vocabulary(
        "word", (UNKNOWN_WORD, *sorted(frequent, key=lambda word: (-counts[word], word))), 0
    )


def _code_points(text: str, *, holder: str = "the text") -> npt.NDArray[np.uint32]:
    """Return the code points [N] of `text`."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32, copy=False)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{holder} holds a lone surrogate, U+{ord(text[error.start]):04X} at position "
            f"{error.start}; drop it, e.g. text.encode('utf-8', 'ignore').decode('utf-8')"
        ) from None


def _characters(code_points: npt.NDArray[np.uint32]) -> list[str]:
    """Return each distinct code point as `'x' (U+0078)`, sorted."""
    distinct = np.unique(code_points).tolist()
    return [f"{chr(code_point)!r} (U+{code_point:04X})" for code_point in distinct]


def _outside(noun: str, shown: list[str]) -> ValueError:
    listed = ", ".join(shown[:_LISTED_AT_MOST])
    more = len(shown) - _LISTED_AT_MOST
    return ValueError(
        f"the text holds {len(shown)} {noun}{'s' * (len(shown) > 1)} outside the vocabulary: "
        f"{listed}{f' and {more} more' * (more > 0)}; remove them, build the vocabulary from a "
        "text that holds them, or build it with an unknown token"
    )


def _check_tokens(tokens: object, kind: str) -> None:
    if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("tokens must be strings only; list every token once, as a string")
    if not tokens:
        raise ValueError("a vocabulary needs at least one token; build it from some text")
    for position, token in enumerate(tokens):
        if kind == "char" and len(token) != 1:
            raise ValueError(f"token {position} is not one character; use kind 'word' for words")
        if kind == "word" and token.split() != [token]:
            raise ValueError(f"token {position} is not one word; split it at its white space")
    _code_points("".join(tokens), holder="the list of tokens")
    if len(set(tokens)) != len(tokens):
        # Counter keeps first-seen order, so the first token with a repetition is named.
        repeated = next(token for token, count in Counter(tokens).items() if count > 1)
        raise ValueError(f"token {repeated[:40]!r} occurs twice; list every token once")


def _check_fields(data: object) -> None:
    if not isinstance(data, Mapping):
        raise ValueError("it is not a JSON object; give what to_dict() or save() made")
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise ValueError("format_version is not a positive integer; give what save() made")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"its format_version is newer than {FORMAT_VERSION}, the newest known; upgrade lstm_jax"
        )
    missing = [field for field in _FIELDS if field not in data]
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing; give what save() made")
    if len(data) > len(_FIELDS):
        raise ValueError(f"it has fields besides {', '.join(_FIELDS)}; remove them")


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 (offset {error.start})"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = f"not JSON ({error})"
    raise ValueError(f"it is {problem}, damaged or cut short; restore it from a good copy")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")

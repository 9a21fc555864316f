"""Laws of the published cleaning: the published steps, one after the other, are the reference."""

import os
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.text import (
    build_published_word_vocabulary,
    first_characters,
    published_batches,
    published_shakespeare_words,
    read_text,
)
from lstm_jax.text.cleaning import UNUSED_WORD

sizes = st.integers(1, 5)
some_words = st.lists(st.sampled_from(["a", "b", "unknown", "it's"]), min_size=1, max_size=30)


def error_line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


# The first characters


@given(st.lists(st.text("ab ", max_size=3)), st.sampled_from(["\n", "\r\n", "\r"]), sizes)
def test_line_ends_go_before_characters_are_counted(lines: list[str], end: str, count: int) -> None:
    text = end.join(lines)
    for line_ends, between in (("keep", end), ("space", " "), ("drop", "")):
        choice: Any = line_ends
        assert first_characters(text, None, line_ends=choice) == between.join(lines)
        assert first_characters(text, count, line_ends=choice) == between.join(lines)[:count]


# Words


def published_words(text: str, skip: int) -> list[str]:
    """Return what the published regular expressions give."""
    text = text[skip:].replace("\r\n", "").replace("\n", "")
    removed = "".join(mark for mark in string.punctuation if mark not in "-'")
    text = re.sub(rf"[{removed}]", " ", text)
    text = re.sub(r"\s+", " ", text).strip().lower()
    return text.split(" ") if text else []


@given(
    st.text(st.sampled_from(string.punctuation + "aB \n\r\t\u2019\u00e9\u0130"), max_size=60),
    st.integers(0, 5),
)
def test_words_are_those_of_the_published_expressions(text: str, skip: int) -> None:
    if len(text) <= skip:
        assert str(skip) in error_line(lambda: published_shakespeare_words(text, skip=skip))
        return
    assert published_shakespeare_words(text, skip=skip) == published_words(text, skip)


def test_every_punctuation_character() -> None:
    kept = [mark for mark in string.punctuation if published_shakespeare_words(mark, skip=0)]
    assert kept == ["'", "-", "\\"]
    assert all(
        published_shakespeare_words(f"a{mark}b", skip=0) == published_words(f"a{mark}b", 0)
        for mark in string.punctuation
    )


def test_lines_run_together() -> None:
    text = "x" * 7675 + "the\nend, of\r\nit's\n well-Known"
    assert published_shakespeare_words(text) == ["theend", "ofit's", "well-known"]


# Vocabulary


def published_tables(words: list[str], more_than: int) -> tuple[dict[str, int], int]:
    """Return the id of every word in the published table, and the rows of its embedding."""
    frequent = [word for word in dict.fromkeys(words) if words.count(word) > more_than]
    id_of = {word: position + 1 for position, word in enumerate(frequent)}
    id_of["unknown"] = 0
    return id_of, len({token_id: word for word, token_id in id_of.items()}) + 1


@given(some_words, st.integers(0, 3))
def test_ids_and_size_are_the_published_ones(words: list[str], more_than: int) -> None:
    if max(map(words.count, words)) <= more_than:
        error_line(lambda: build_published_word_vocabulary(words, more_than=more_than))
        return
    vocabulary = build_published_word_vocabulary(iter(words), more_than=more_than)
    id_of, size = published_tables(words, more_than)
    assert (vocabulary.kind, vocabulary.unknown, len(vocabulary)) == ("word", 0, size)
    assert {word: vocabulary.tokens.index(word) for word in id_of} == id_of
    assert set(vocabulary.tokens) == {*id_of, UNUSED_WORD}
    assert vocabulary.encode_tokens(words).tolist() == [id_of.get(word, 0) for word in words]


def test_the_unused_id() -> None:
    def tokens(words: str) -> tuple[str, ...]:
        return build_published_word_vocabulary(words.split(), more_than=1).tokens

    assert tokens("b unknown a b a unknown c") == ("unknown", "b", UNUSED_WORD, "a")
    assert tokens("b unknown a b a c") == ("unknown", "b", "a", UNUSED_WORD)


@pytest.mark.parametrize("words", [[], ["a"] * 5, "one str"])
def test_impossible_vocabularies(words: Any) -> None:
    error_line(lambda: build_published_word_vocabulary(words))


# Batches


@given(st.integers(0, 200), sizes, sizes)
def test_batches_are_the_published_ones(total: int, batch_size: int, length: int) -> None:
    stream = np.arange(100, 100 + total)
    count = total // (batch_size * length) + 1
    if total < count:
        message = error_line(
            lambda: published_batches(stream, batch_size=batch_size, sequence_length=length)
        )
        assert str(total) in message
        return
    inputs, targets = published_batches(stream, batch_size=batch_size, sequence_length=length)
    assert inputs.shape == targets.shape == (count, length, batch_size)
    assert inputs.dtype == targets.dtype == np.int32
    start = 0
    for k in range(count):
        piece = [100 + start + i for i in range(total // count + (k < total % count))]
        start += len(piece)
        for lane in range(batch_size):
            row = [piece[(lane * length + step) % len(piece)] for step in range(length)]
            assert inputs[k, :, lane].tolist() == row
            assert targets[k, :, lane].tolist() == row[1:] + row[:1]
    assert start == total, "a word is in no batch"


WORKS = Path(os.environ.get("LSTM_JAX_DATA", "no folder")) / "shakespeare.txt"


@pytest.mark.skipif(not WORKS.is_file(), reason="the full works, shakespeare.txt, are not at hand")
def test_the_full_works_have_the_published_number_of_entries() -> None:
    words = published_shakespeare_words(read_text(WORKS, as_is=True))
    assert len(build_published_word_vocabulary(words)) == 8009

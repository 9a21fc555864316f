"""Laws of the published word model's text: its steps, one after the other, are the reference."""

import re
import string

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import refusal

from lstm_jax.systems.corpus import CorpusConfig, first_characters
from lstm_jax.systems.published import (
    UNUSED_WORD,
    published_batches,
    published_vocabulary,
    published_words,
)

sizes = st.integers(1, 5)
some_words = st.lists(st.sampled_from(["a", "b", "unknown", "it's"]), min_size=1, max_size=30)


@given(st.lists(st.text("ab ", max_size=3)), st.sampled_from(["\n", "\r\n", "\r"]), sizes)
def test_line_ends_go_before_characters_are_counted(lines: list[str], end: str, count: int) -> None:
    text = end.join(lines)
    for line_ends, between in (("keep", end), ("space", " "), ("drop", "")):
        for most in (None, count):
            config = CorpusConfig(line_ends=line_ends, characters=most)  # type: ignore[arg-type]
            assert first_characters(text, config) == between.join(lines)[:most]


def by_published_expressions(text: str, skip: int) -> list[str]:
    text = text[skip:].replace("\r\n", "").replace("\n", "")
    removed = "".join(mark for mark in string.punctuation if mark not in "-'")
    text = re.sub(rf"[{removed}]", " ", text)
    text = re.sub(r"\s+", " ", text).strip().lower()
    return text.split(" ") if text else []


@given(
    st.text(st.sampled_from(string.punctuation + "aB \n\r\t\u2019\u00e9\u0130"), max_size=60),
    st.integers(0, 5),
)
@example(string.punctuation, 0)
@example("x" * 7675 + "the\nend, of\r\nit's\n well-Known", 7675)
def test_words_are_those_of_the_published_expressions(text: str, skip: int) -> None:
    if len(text) <= skip:
        assert str(skip) in refusal(published_words, text, skip=skip)
        return
    assert published_words(text, skip=skip) == by_published_expressions(text, skip)


def published_tables(words: list[str], min_count: int) -> tuple[dict[str, int], int]:
    """The id of every word in the published table, and the rows of its embedding."""
    frequent = [word for word in dict.fromkeys(words) if words.count(word) >= min_count]
    id_of = {word: position + 1 for position, word in enumerate(frequent)}
    id_of["unknown"] = 0
    return id_of, len({token_id: word for word, token_id in id_of.items()}) + 1


@given(some_words, st.integers(1, 4))
def test_ids_and_size_are_the_published_ones(words: list[str], min_count: int) -> None:
    if max(map(words.count, words)) < min_count:
        refusal(published_vocabulary, words, min_count=min_count)
        return
    vocabulary = published_vocabulary(iter(words), min_count=min_count)
    id_of, size = published_tables(words, min_count)
    assert (vocabulary.kind, vocabulary.unknown, len(vocabulary)) == ("word", 0, size)
    assert {word: vocabulary.tokens.index(word) for word in id_of} == id_of
    assert set(vocabulary.tokens) == {*id_of, UNUSED_WORD}
    assert vocabulary.encode_tokens(words).tolist() == [id_of.get(word, 0) for word in words]


@given(st.integers(0, 200), sizes, sizes)
def test_batches_are_the_published_ones(total: int, batch_size: int, length: int) -> None:
    stream, lay = np.arange(100, 100 + total), {"batch_size": batch_size, "sequence_length": length}
    count = total // (batch_size * length) + 1
    if total < count:
        assert str(total) in refusal(published_batches, stream, **lay)
        return
    inputs, targets = published_batches(stream, **lay)
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

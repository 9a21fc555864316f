"""Texts: files, tokens, poems, word vectors, tables of reviews."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import ODD_TEXTS, POEMS, PROSE, broken_bytes, broken_text, perhaps_broken, rarely
from hypothesis import example, given
from hypothesis import strategies as st
from law import Surface, many

from lstm_jax.systems.corpus import CorpusConfig, first_characters
from lstm_jax.systems.poems import build_poem_vocabulary, read_poems
from lstm_jax.systems.published import published_vocabulary, published_words
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    encode_review,
    lanes,
    padded_lanes,
    read_reviews,
    read_text,
    read_vectors,
    review_words,
    words,
)


@many
@given(
    st.sampled_from((1, 1, 5)).flatmap(lambda times: broken_bytes((PROSE * times).encode())),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 2, 7)),
    st.sampled_from((1, 3, 50)),
)
@example(b"\xff\xfeno text", False, False, 1, 3)
@example("in UTF-16".encode("utf-16"), True, False, 1, 3)
@example(b"\xed\xa0\x80 a surrogate", False, True, 1, 3)
@example(b"\0", False, False, 1, 1)
def test_text_files(
    surface: Surface, content: bytes, as_is: bool, unknown: bool, batch_size: int, length: int
) -> None:
    with surface.case({"text.txt": content}) as place:
        text = read_text(place / "text.txt", as_is=as_is)
        assert as_is or "\r" not in text
        vocabulary = build_char_vocabulary(text, unknown=unknown)
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        heldout = padded_lanes(ids, batch_size=batch_size, sequence_length=length)
        assert int(heldout.mask.sum()) == len(ids) - 1, "a held-out token was lost"
        lanes(ids, batch_size=batch_size, sequence_length=length)


@many
@given(broken_text(PROSE), st.integers(0, 4), st.sampled_from((1, 2, 9)), st.booleans())
def test_tokenizers(surface: Surface, text: str, which: int, size: int, flag: bool) -> None:
    with surface.case():
        found, reviewed = words(text), review_words(text)
        assert words(" ".join(found)) == found, "words are split again"
        assert review_words(" ".join(reviewed)) == reviewed, "review words are split again"
        match which:
            case 0:
                vocabulary = build_word_vocabulary(found, min_count=size)
                assert len(vocabulary.encode(text)) == len(found), "a word was lost"
            case 1:
                vocabulary = build_review_vocabulary([reviewed], 8 if flag else 10_000)
                encode_review(vocabulary, reviewed, size)
            case 2:
                kept = published_words(text, skip=0 if flag else 7_675)
                published_vocabulary(kept, min_count=size)
            case 3:
                config = CorpusConfig(characters=None if flag else size, line_ends="space")
                build_char_vocabulary(first_characters(text, config))
            case _:
                build_char_vocabulary(PROSE, unknown=flag).encode_prompt(text)


@many
@given(
    broken_bytes(POEMS.encode()),
    st.fixed_dictionaries(
        {
            "length": st.sampled_from((1, 2, 50)),
            "keep": st.sampled_from(("first", "last")),
            "drop_unfit": st.booleans(),
        }
    ),
)
def test_poem_files(surface: Surface, content: bytes, options: dict[str, Any]) -> None:
    with surface.case({"poems.txt": content}) as place:
        found = read_poems(read_text(place / "poems.txt"), **options)
        assert all(len(poem) <= options["length"] for poem in found.poems)
        vocabulary = build_poem_vocabulary(found.poems)
        for poem in found.poems:
            assert vocabulary.decode(vocabulary.encode(poem)) == poem


@st.composite
def vector_files(draw: st.DrawFn) -> bytes:
    width = draw(st.sampled_from((1, 3, 3, 50)))
    lines = [["7", "3"]] if draw(rarely(st.just(False), st.just(True), 5)) else []
    for row, word in enumerate(("the", "film", "good", "été", "other", ".")):
        lines.append([word, *(f"{(row - 2.5) / (1 + column):.4f}" for column in range(width))])
    if draw(st.booleans()):
        odd = ("nan", "inf", "1e999", "1e-999", "1_0", "\u0663", "0x1p3", "", "-", *ODD_TEXTS)
        fields = draw(st.sampled_from(lines))
        fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from(odd))
    content = "\n".join(map(" ".join, lines)).encode("utf-8", errors="surrogatepass")
    return draw(perhaps_broken(content))


@pytest.fixture(scope="module")
def film_words() -> Vocabulary:
    return build_review_vocabulary([["the", "film", "was", "good", "été", "it's"]])


@many
@given(vector_files(), st.sampled_from(("drawn", "zeros")))
@example(b"the 1e999 0\n", "zeros")
@example(b"the nan\n", "zeros")
@example(b"the 1 2 3\nfilm 1 2\n", "drawn")
def test_word_vector_files(
    surface: Surface, film_words: Vocabulary, content: bytes, missing: Any
) -> None:
    with surface.case({"vectors.txt": content}) as place:
        found = read_vectors(place / "vectors.txt", film_words, seed=3, missing=missing)
        assert len(found.table) == len(film_words)
        assert np.isfinite(found.table).all()
        assert not found.table[0].any(), "the padding has a vector"


@st.composite
def review_tables(draw: st.DrawFn) -> tuple[str, bytes]:
    file, name = io.StringIO(newline=""), draw(st.sampled_from(("reviews.csv", "reviews.tsv")))
    writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
    heads = st.tuples(st.sampled_from(("text", "Review")), st.sampled_from(("label", "SENTIMENT")))
    writer.writerow(["id", *draw(heads)])
    kind = draw(st.sampled_from((("0", "1"), ("neg", "pos"), ("0", "pos"))))
    for row in range(draw(st.sampled_from((2, 4, 9)))):
        label = draw(rarely(st.just(kind[row % 2]), st.sampled_from(ODD_TEXTS)))
        writer.writerow([row, PROSE[row : row + draw(st.sampled_from((5, 90)))], label])
    content = file.getvalue().encode("utf-8", errors="surrogatepass")
    if draw(rarely(st.just(False), st.just(True), 50)):
        content += b"9," + b"a" * 200_000 + b",1\r\n"
    return name, draw(perhaps_broken(content))


@many
@given(review_tables())
@example(("reviews.csv", b"text,label\ngood," + b"1\nbad,0\n" + b'"' * 3))
@example(("reviews.tsv", b"text\tlabel\n" + b"a" * 200_000 + b"\t1\nb\t0\n"))
def test_review_tables(surface: Surface, table: tuple[str, bytes]) -> None:
    name, content = table
    with surface.case({name: content}) as place:
        found = read_reviews(Path(place, name)).training
        assert set(found.labels.tolist()) == {0, 1}
        assert len(found.texts) == len(found.labels)

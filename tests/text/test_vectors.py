"""Laws of the word vectors."""

import codecs
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal, write

from lstm_jax.systems.poems import build_poem_vocabulary
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    read_vectors,
)

VOCABULARY = build_review_vocabulary([["the", "caf\u00e9", "don't", "unseen"]])
WORDS = VOCABULARY.tokens[4:]
FILE = (
    "the 0.5 -1 2e-1\nelse 1 2 3\ncaf\u00e9 4 5 6\ndo 1 2 3\nthe 9 9 9\n"
    "<pad> 7 7 7\n<start> 7 7 7\n"
)
numbers = st.floats(-1e6, 1e6, width=32)
read = partial(read_vectors, vocabulary=VOCABULARY)


@given(
    found=st.dictionaries(st.sampled_from(WORDS), st.tuples(numbers, numbers), min_size=1),
    others=st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1), numbers
    ),
    random=st.randoms(),
    header=st.booleans(),
)
def test_rows_are_the_vectors_of_their_words(
    tmp_path: Path,
    found: dict[str, tuple[float, float]],
    others: dict[str, float],
    random: Any,
    header: bool,
) -> None:
    lines = [f"{word} {a!r} {b!r}" for word, (a, b) in found.items()]
    lines += [f"{word} {a} 0" for word, a in others.items() if word not in WORDS]
    random.shuffle(lines)
    text = "\n".join([f"{len(lines)} 2"] * header + lines)
    vectors = read(write(tmp_path / "v.txt", text))
    assert vectors.table.shape == (len(VOCABULARY), 2) and vectors.table.dtype == np.float32
    for word, vector in found.items():
        row = vectors.table[VOCABULARY.tokens.index(word)]
        np.testing.assert_array_equal(row, np.array(vector, np.float32))
    assert vectors.found == len(found)
    assert vectors.missing == tuple(word for word in WORDS if word not in found)
    assert not vectors.table[0].any()


def test_special_tokens_and_missing_words_are_drawn_by_the_seed_or_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", FILE)
    vectors, other = read(path), read(path, seed=1)
    assert (vectors.found, vectors.missing) == (2, ("don't", "unseen"))
    rows = dict(zip(VOCABULARY.tokens, vectors.table.tolist(), strict=True))
    assert rows["the"] == pytest.approx([0.5, -1, 0.2])  # the first of its two
    assert rows["<pad>"] == [0, 0, 0]
    drawn = [rows[token] for token in ("<start>", "<unknown>", "<unused>", "don't", "unseen")]
    assert all(all(row) and row != [7, 7, 7] for row in drawn)
    assert len({tuple(row) for row in drawn}) == 5
    np.testing.assert_array_equal(read(path).table, vectors.table)
    same = (other.table == vectors.table).all(1)
    assert [VOCABULARY.tokens[i] for i in np.flatnonzero(same)] == ["<pad>", "caf\u00e9", "the"]
    zeros = read(path, missing="zeros")
    assert zeros[1:] == vectors[1:]
    known = [VOCABULARY.tokens.index(word) for word in ("the", "caf\u00e9")]
    np.testing.assert_array_equal(zeros.table[known], vectors.table[known])
    assert not np.delete(zeros.table, known, axis=0).any()


def test_what_is_drawn_has_the_spread_of_what_is_found(tmp_path: Path) -> None:
    vocabulary = build_review_vocabulary([[f"w{n}" for n in range(2000)]])
    values = np.random.default_rng(0).normal(3.0, 0.4, (500, 8))
    lines = (f"w{n} {' '.join(map(str, row))}\n" for n, row in enumerate(values))
    vectors = read_vectors(write(tmp_path / "v.txt", "".join(lines)), vocabulary)
    missing = vectors.table[[vocabulary.tokens.index(word) for word in vectors.missing]]
    assert missing.shape == (1500, 8)
    # 12,000 draws: the standard errors of mean and deviation are below 0.004.
    assert abs(missing.mean()) < 0.02
    assert missing.std() == pytest.approx(values.std(), abs=0.02)


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + FILE.encode(),
        FILE.replace("\n", "\r\n").encode(),
        FILE.replace("\n", " \n").encode(),
        FILE.replace(" ", " \t ").replace("the", "\t the").encode(),
        ("9 3\n" + FILE + "\n\n").encode(),
        FILE.encode().replace(b"else", b"\xff\xfe"),
        FILE.encode().replace(b"else 1 2 3", b"else x - *"),  # of other words none is read
    ],
)
def test_variants_are_the_same(tmp_path: Path, content: bytes) -> None:
    plain = read(write(tmp_path / "v.txt", FILE))
    variant = read(str(write(tmp_path / "w.txt", content)))
    np.testing.assert_array_equal(plain.table, variant.table)
    assert plain[1:] == variant[1:]


@pytest.mark.parametrize("header", ["", "9 3\n"])
@given(
    others=st.lists(
        st.text(" .@ab7\x0b\x0c\u0085\u00a0\u2028", min_size=1).filter(
            lambda word: not word.strip().split(" ")[-1].isdigit() and word not in WORDS
        )
    )
)
def test_the_last_fields_are_the_numbers(tmp_path: Path, others: list[str], header: str) -> None:
    plain = read(write(tmp_path / "v.txt", FILE))
    lines = "".join(f"{word}a 7 7.5 -7\n" for word in [". . .", "to a@b.c", *others])
    found = read(write(tmp_path / "w.txt", header + lines + FILE))
    np.testing.assert_array_equal(plain.table, found.table)


def test_row_0_is_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", "the 1 2\n")
    for other in (build_word_vocabulary(["the"]), Vocabulary("word", ("the", "<pad>"))):
        assert "row 0" in refusal(read_vectors, path, other)
    refusal(read_vectors, path, build_char_vocabulary("ab"))
    poems = build_poem_vocabulary(["\u6625\u7720"])
    vectors = read_vectors(write(path, "\u6625 1 2\n"), poems)
    assert vectors.found == 1 and not vectors.table[0].any()
    assert poems.tokens[0] not in vectors.missing

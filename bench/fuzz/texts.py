"""Texts: files, tokens, poems, word vectors, tables of reviews."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np

from bench.fuzz.mutations import ODD_TEXTS, broken_bytes, broken_text
from bench.fuzz.trial import require, require_only
from lstm_jax.systems.poems import build_poem_vocabulary, read_poems
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_published_word_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    encode_review,
    first_characters,
    lanes,
    padded_lanes,
    published_shakespeare_words,
    read_reviews,
    read_text,
    read_vectors,
    review_words,
    words,
)

PROSE = (
    "The quick brown fox — it's well-known — jumps over 13 lazy dogs.\n"
    "« Où es-tu ? » 分开 不分开\n\n<br />Don’t stop: naïve façades, e\u0301te\u0301.\n"  # noqa: RUF001
)
POEMS = "春:春眠不觉晓\n夜：夜来风雨声\nempty:\nno colon\n靜夜思:床前明月光，疑是地上霜。\n"  # noqa: RUF001


@dataclass(frozen=True)
class TextFiles:
    """`read_text`, and what becomes of the text."""

    name: str = "text files"
    share: int = 14

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        path = place / "text.txt"
        path.write_bytes(broken_bytes(rng, (PROSE * rng.choice((1, 1, 5))).encode()))
        as_is = rng.random() < 0.2
        text = read_text(path, as_is=as_is)
        require(as_is or "\r" not in text, "a carriage return came through")
        vocabulary = build_char_vocabulary(text, unknown=rng.random() < 0.5)
        ids = vocabulary.encode(text)
        require(vocabulary.decode(ids) == text, "decoding does not give the text back")
        batch_size, length = rng.choice((1, 2, 7)), rng.choice((1, 3, 50))
        heldout = padded_lanes(ids, batch_size=batch_size, sequence_length=length)
        require(int(heldout.mask.sum()) == len(ids) - 1, "a held-out token was lost")
        lanes(ids, batch_size=batch_size, sequence_length=length)


@dataclass(frozen=True)
class Tokens:
    """Tokenizers and the vocabularies that are built from what they give."""

    name: str = "tokenizers"
    share: int = 12

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        text = broken_text(rng, PROSE)
        found, reviewed = words(text), review_words(text)
        require(words(" ".join(found)) == found, "words are split again")
        require(review_words(" ".join(reviewed)) == reviewed, "review words are split again")
        match rng.randrange(5):
            case 0:
                vocabulary = build_word_vocabulary(found, min_count=rng.choice((1, 1, 2, 9)))
                require(len(vocabulary.encode(text)) == len(found), "a word was lost")
            case 1:
                vocabulary = build_review_vocabulary([reviewed], rng.choice((5, 8, 10_000)))
                encode_review(vocabulary, reviewed, rng.choice((1, 3, 80)))
            case 2:
                kept = published_shakespeare_words(text, skip=rng.choice((0, 5, 7_675)))
                build_published_word_vocabulary(kept, more_than=rng.choice((0, 1)))
            case 3:
                build_char_vocabulary(
                    first_characters(text, rng.choice((None, 1, 9)), line_ends="space")
                )
            case _:
                build_char_vocabulary(PROSE, unknown=rng.random() < 0.5).encode_prompt(text)


@dataclass(frozen=True)
class PoemFiles:
    """`read_poems`."""

    name: str = "poems files"
    share: int = 8

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        path = place / "poems.txt"
        path.write_bytes(broken_bytes(rng, POEMS.encode()))
        length = rng.choice((1, 2, 50))
        found = read_poems(
            read_text(path),
            length=length,
            keep=rng.choice(("first", "last")),
            drop_empty=rng.random() < 0.5,
            drop_repeated=rng.random() < 0.5,
        )
        require(all(len(poem) <= length for poem in found.poems), "a poem is too long")
        vocabulary = build_poem_vocabulary(found.poems)
        for poem in found.poems:
            require(vocabulary.decode(vocabulary.encode(poem)) == poem, "a poem has changed")


@dataclass(frozen=True)
class VectorFiles:
    """`read_vectors`."""

    name: str = "word-vector files"
    share: int = 10

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return build_review_vocabulary([["the", "film", "was", "good", "été", "it's"]])

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        width = rng.choice((1, 3, 3, 50))
        lines = ["7 3"] if rng.random() < 0.2 else []
        for word in ("the", "film", "good", "été", "other", "."):
            lines.append(" ".join([word, *(f"{rng.gauss(0, 1):.4f}" for _ in range(width))]))
        if rng.random() < 0.4:
            fields = lines[at := rng.randrange(len(lines))].split(" ")
            fields[rng.randrange(len(fields))] = rng.choice(
                ("nan", "inf", "1e999", "1e-999", "1_0", "\u0663", "0x1p3", "", "-", *ODD_TEXTS)
            )
            lines[at] = " ".join(fields)
        content = "\n".join(lines).encode("utf-8", errors="surrogatepass")
        path = place / "vectors.txt"
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.7 else content)
        found = read_vectors(path, self._vocabulary, seed=3, missing=rng.choice(("drawn", "zeros")))
        require(len(found.table) == len(self._vocabulary), "rows are missing")
        require(bool(np.isfinite(found.table).all()), "a number is not finite")
        require(not found.table[0].any(), "the padding has a vector")
        require_only(place, "vectors.txt")


@dataclass(frozen=True)
class Tables:
    """`read_reviews` of CSV and TSV."""

    name: str = "review tables"
    share: int = 10

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        file, is_tab = io.StringIO(newline=""), rng.random() < 0.5
        writer = csv.writer(file, delimiter="\t" if is_tab else ",")
        writer.writerow(["id", rng.choice(("text", "Review")), rng.choice(("label", "SENTIMENT"))])
        for row in range(rng.choice((2, 4, 9))):
            label: object = rng.choice((row % 2, "pos", "neg"))
            if rng.random() < 0.05:
                label = rng.choice(ODD_TEXTS)
            writer.writerow([row, PROSE[row : row + rng.choice((5, 90))], label])
        content = file.getvalue().encode("utf-8", errors="surrogatepass")
        if rng.random() < 0.02:
            content += b"9," + b"a" * 200_000 + b",1\r\n"
        path = place / ("reviews.tsv" if is_tab else "reviews.csv")
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.8 else content)
        try:
            found = read_reviews(path).training
        finally:
            require_only(place, path.name)
            path.unlink()
        require(set(found.labels.tolist()) == {0, 1}, "labels are not 0 and 1")
        require(len(found.texts) == len(found.labels), "texts and labels differ in number")

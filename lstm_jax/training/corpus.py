"""From a config to the ids that a run trains on and is judged by."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from lstm_jax.text import (
    Lanes,
    PaddedLanes,
    Vocabulary,
    build_char_vocabulary,
    build_word_vocabulary,
    heldout_split,
    lanes,
    padded_lanes,
    python_documentation,
    read_text,
    words,
)
from lstm_jax.training.config import TrainConfig

PYTHON_DOCS = "python-docs"
"""The name, in place of a file's, of the documentation text that comes with Python."""


class Corpus(NamedTuple):
    """A text, laid out for training and for evaluation.

    Attributes:
        text: the text itself.
        sha256: of its UTF-8 bytes.
        vocabulary: of the whole text, so that its held-out end has no unknown characters.
        training: lanes of the training share.
        heldout: padded lanes of the held-out end, every token of which is predicted once; None
            if nothing is held out.
    """

    text: str
    sha256: str
    vocabulary: Vocabulary
    training: Lanes
    heldout: PaddedLanes | None


def read_corpus_text(config: TrainConfig, copy: Path | None = None) -> str:
    """The text to train on.

    Args:
        config: names it.
        copy: where a run keeps its own copy of a text that differs between Python versions.

    Raises:
        ValueError: there is none, or it is no text.
    """
    if copy is not None and copy.exists():
        return read_text(copy)
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no text of its own; name a UTF-8 text with --data PATH"
        )
    if config.data == PYTHON_DOCS:
        return python_documentation()
    return read_text(config.data)


def make_corpus(config: TrainConfig, text: str) -> Corpus:
    """Builds the vocabulary, splits off the held-out share, and lays both parts out.

    Raises:
        ValueError: the text is too short for one batch.
    """
    if config.tokens == "char":
        vocabulary = build_char_vocabulary(text)
    else:
        vocabulary = build_word_vocabulary(words(text), min_count=config.min_count)
    training, heldout = heldout_split(vocabulary.encode(text), config.heldout_share)
    laid_out = lanes(training, batch_size=config.batch_size, sequence_length=config.sequence_length)
    padded = None
    if heldout.size:
        padded = padded_lanes(
            heldout,
            context=int(training[-1]),
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
        )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Corpus(text, sha256, vocabulary, laid_out, padded)

"""From a config to the ids that a run trains on and is judged by."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
        heldout: padded lanes of the held-out share, every token of which is predicted once; None
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
    ids = vocabulary.encode(text)
    if config.heldout_from == "lanes" and config.heldout_share:
        return Corpus(text, _sha256(text), vocabulary, *_split_lanes(config, ids))
    training, heldout = heldout_split(ids, config.heldout_share)
    laid_out = lanes(training, batch_size=config.batch_size, sequence_length=config.sequence_length)
    padded = None
    if heldout.size:
        padded = padded_lanes(
            heldout,
            context=int(training[-1]),
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
        )
    return Corpus(text, _sha256(text), vocabulary, laid_out, padded)


def _split_lanes(config: TrainConfig, ids: npt.NDArray[np.int32]) -> tuple[Lanes, PaddedLanes]:
    """Lays out the whole text, and cuts the same share off the end of every lane."""
    times = config.sequence_length
    whole = lanes(ids, batch_size=config.batch_size, sequence_length=times)
    kept = int(whole.batches * (1 - config.heldout_share))
    if not 0 < kept < whole.batches:
        raise ValueError(
            f"holding out {config.heldout_share} of {whole.batches} batches leaves one part empty; "
            "use another share, a smaller batch size or sequence length, or more text"
        )
    tokens, heldout = whole.tokens[: kept * times + 1], whole.tokens[kept * times :]
    mask = np.ones(heldout[1:].shape, np.bool_)
    return Lanes(tokens, times), PaddedLanes(heldout[:-1], heldout[1:], mask)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""From a config to the ids that a run trains on and is judged by."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_jax.text import (
    NOT_COUNTED,
    Lanes,
    PaddedLanes,
    Vocabulary,
    build_char_vocabulary,
    build_published_word_vocabulary,
    build_word_vocabulary,
    first_characters,
    heldout_split,
    lanes,
    padded_lanes,
    published_batches,
    published_shakespeare_words,
    python_documentation,
    read_text,
    words,
)
from lstm_jax.text.ids import Ids
from lstm_jax.training.config import AnyConfig, LanguageConfig
from lstm_jax.training.downloads import SOURCES, fetch

PYTHON_DOCS = "python-docs"
"""The name, in place of a file's, of the documentation text that comes with Python."""

BUILT_IN = frozenset([PYTHON_DOCS])
"""Names of texts that need neither a file nor a network."""


class PublishedBatches(NamedTuple):
    """Batches of consecutive pieces of a text: `inputs` and `targets`, int32 `[S, T, B]`."""

    inputs: Ids
    targets: Ids

    @property
    def batches(self) -> int:
        """S, the number of batches of one epoch."""
        return len(self.inputs)

    def order(self, seed: int, epoch: int) -> tuple[int, ...]:
        """Which batch comes when in an epoch: shuffled."""
        return _shuffled(self.batches, seed, epoch)


@lru_cache(maxsize=2)
def _shuffled(number: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(number).tolist())


class Corpus(NamedTuple):
    """A text, laid out for training and for evaluation.

    Attributes:
        text: the text that was laid out.
        sha256: of the UTF-8 bytes of the text as it was read.
        vocabulary: of the whole text, so that its held-out end has no unknown characters.
        ids: int32 `[N]`, all of it.
        training: the training share, laid out.
        heldout: padded lanes of the held-out share, every token of which is predicted once; each
            lane begins with the T tokens of text before it, which are not counted. None if nothing
            is held out.
    """

    text: str
    sha256: str
    vocabulary: Vocabulary
    ids: Ids
    training: Lanes | PublishedBatches
    heldout: PaddedLanes | None


def read_corpus_text(config: LanguageConfig, copy: Path | None = None) -> str:
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
    source = SOURCES.get(config.data)
    path = config.data if source is None else fetch(source)
    # The published cleaning drops a number of the file's own characters, line ends included.
    return read_text(path, as_is=config.cleaning == "published")


def make_corpus(config: LanguageConfig, text: str, vocabulary: Vocabulary | None = None) -> Corpus:
    """Builds the vocabulary, splits off the held-out share, and lays both parts out.

    Args:
        config: the run's settings.
        text: as it was read.
        vocabulary: to take in place of the text's own.

    Raises:
        ValueError: the text is too short for one batch, or has characters outside the vocabulary.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    text = first_characters(text, config.characters, line_ends=config.line_ends)
    vocabulary, ids = _tokenize(config, text, vocabulary)
    if config.heldout_from == "lanes" and config.heldout_share:
        return Corpus(text, sha256, vocabulary, ids, *_split_lanes(config, ids))
    training, heldout = heldout_split(ids, config.heldout_share)
    sizes = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
    laid_out: Lanes | PublishedBatches
    if config.layout == "published":
        laid_out = PublishedBatches(*published_batches(training, **sizes))
    else:
        laid_out = lanes(training, **sizes)
    padded = None
    if heldout.size:
        context = training[-(config.sequence_length + 1) :]
        padded = padded_lanes(heldout, context=context, **sizes)
    return Corpus(text, sha256, vocabulary, ids, laid_out, padded)


def known_characters(vocabulary: Vocabulary, text: str, config: AnyConfig) -> Vocabulary:
    """The vocabulary of the run that this one begins with.

    Raises:
        ValueError: it lacks a character of the text.
    """
    try:
        vocabulary.encode(text)
    except ValueError as error:
        raise ValueError(
            f"cannot begin with the vocabulary of {config.init_from}: {error}; or leave --init-from"
        ) from None
    return vocabulary


def _tokenize(
    config: LanguageConfig, text: str, known: Vocabulary | None
) -> tuple[Vocabulary, Ids]:
    if config.tokens == "char":
        if known is None:
            vocabulary = build_char_vocabulary(text)
        else:
            vocabulary = known_characters(known, text, config)
        return vocabulary, vocabulary.encode(text)
    if config.cleaning == "published":
        found = published_shakespeare_words(text)
        vocabulary = known or build_published_word_vocabulary(found, more_than=config.min_count - 1)
    else:
        found = words(text)
        vocabulary = known or build_word_vocabulary(found, min_count=config.min_count)
    return vocabulary, vocabulary.encode_tokens(found)


def _split_lanes(config: LanguageConfig, ids: npt.NDArray[np.int32]) -> tuple[Lanes, PaddedLanes]:
    """Lays out the whole text, and cuts the same share off the end of every lane."""
    times = config.sequence_length
    whole = lanes(ids, batch_size=config.batch_size, sequence_length=times)
    kept = int(whole.batches * (1 - config.heldout_share))
    if not 0 < kept < whole.batches:
        raise ValueError(
            f"holding out {config.heldout_share} of {whole.batches} batches leaves one part empty; "
            "use another share, a smaller batch size or sequence length, or more text"
        )
    training, heldout = whole.tokens[: kept * times + 1], whole.tokens[(kept - 1) * times :]
    targets = heldout[1:].copy()
    targets[:times] = NOT_COUNTED
    mask = np.ones(targets.shape, np.bool_)
    return Lanes(training, times), PaddedLanes(heldout[:-1], targets, mask)

"""From a config to the ids that a run trains on and is judged by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_jax.settings import Count, Vocabular
from lstm_jax.systems.base import TrainConfig, known_characters
from lstm_jax.systems.downloads import SOURCES, fetch
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

PYTHON_DOCS = "python-docs"
"""The name, in place of a file's, of the documentation text that comes with Python."""

BUILT_IN = frozenset([PYTHON_DOCS])
"""Names of texts that need neither a file nor a network."""


@dataclass(frozen=True)
class CorpusConfig(TrainConfig):
    """How a text is read, cut into tokens, and laid out.

    Attributes:
        tokens: what a token is: a character, or a word.
        min_count: words that occur less often are unknown (words only).
        cleaning: how words are found: "words", lower-cased runs of letters, digits, - and '; or
            "published", as a published word model did, which deletes line ends.
        characters: how many of the text's first characters to take; None for all.
        line_ends: whether line ends stay ("keep"), become a "space", or "drop" out.
        layout: "lanes", consecutive text from batch to batch; or "published", consecutive pieces
            of a batch each, shuffled though the carry goes on, as a published word model did.
        heldout_from: which share is held out: the text's "end"; or the end of each of the batch's
            "lanes", as some published notebooks have it, so that it comes from all over the text.
        sequence_length: steps of truncated backpropagation through time.
    """

    tokens: Vocabular[Literal["char", "word"]] = "char"
    min_count: Vocabular[Count] = 1
    cleaning: Literal["words", "published"] = "words"
    characters: Count | None = None
    line_ends: Literal["keep", "space", "drop"] = "keep"
    layout: Literal["lanes", "published"] = "lanes"
    heldout_from: Literal["end", "lanes"] = "end"
    sequence_length: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "published" and self.heldout_from == "lanes" and self.heldout_share:
            raise ValueError('layout "published" has no lanes; hold out from the "end"')
        if self.cleaning == "published" and self.tokens != "word":
            raise ValueError('cleaning "published" is of words; set tokens to "word"')


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


def read_corpus_text(config: CorpusConfig, copy: Path | None = None) -> str:
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


def make_corpus(config: CorpusConfig, text: str, vocabulary: Vocabulary | None = None) -> Corpus:
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


def _tokenize(config: CorpusConfig, text: str, known: Vocabulary | None) -> tuple[Vocabulary, Ids]:
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


def _split_lanes(config: CorpusConfig, ids: npt.NDArray[np.int32]) -> tuple[Lanes, PaddedLanes]:
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

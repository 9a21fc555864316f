"""From a config to the ids that a run trains on and is judged by."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lstm_jax.settings import Count, Vocabular
from lstm_jax.systems.base import TrainConfig, known_characters
from lstm_jax.systems.downloads import located
from lstm_jax.systems.published import (
    PublishedBatches,
    published_batches,
    published_vocabulary,
    published_words,
)
from lstm_jax.text import (
    NOT_COUNTED,
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
from lstm_jax.text.ids import Ids

BUILT_IN = frozenset(["python-docs"])
"""Names, in place of a file's, of texts that come with Python: its documentation."""


@dataclass(frozen=True)
class CorpusConfig(TrainConfig):
    """How a text is read, cut into tokens, and laid out."""

    tokens: Vocabular[Literal["char", "word"]] = "char"  # what a token is: a character, or a word.
    min_count: Vocabular[Count] = 1  # words that occur less often are unknown (words only).
    #: how words are found: "words", lower-cased runs of letters, digits, - and '; or "published",
    #: as a published word model did, which deletes line ends.
    cleaning: Literal["words", "published"] = "words"
    #: how many of the text's first characters to take; None for all.
    characters: Count | None = None
    #: whether line ends stay ("keep"), become a "space", or "drop" out.
    line_ends: Literal["keep", "space", "drop"] = "keep"
    #: "lanes", consecutive text from batch to batch; or "published", consecutive pieces of a batch
    #: each, shuffled though the carry goes on, as a published word model did.
    layout: Literal["lanes", "published"] = "lanes"
    #: which share is held out: the text's "end"; or the end of each of the batch's "lanes", as some
    #: published notebooks have it, so that it comes from all over the text.
    heldout_from: Literal["end", "lanes"] = "end"
    sequence_length: Count = 64  # steps of truncated backpropagation through time.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "published" and self.heldout_from == "lanes" and self.heldout_share:
            raise ValueError('layout "published" has no lanes; hold out from the "end"')
        if self.cleaning == "published" and self.tokens != "word":
            raise ValueError('cleaning "published" is of words; set tokens to "word"')


class Corpus(NamedTuple):
    """A text, laid out for training and for evaluation.

    Of the held-out share, if there is one, every token is predicted once; each lane begins with the
    T tokens of text before it, which are not counted.
    """

    text: str  # that was laid out
    sha256: str  # of the UTF-8 bytes of the text as it was read
    vocabulary: Vocabulary  # of the whole text: its held-out end has no unknown characters
    ids: Ids  # int32 [N], all of it
    training: Lanes | PublishedBatches
    heldout: PaddedLanes | None


def read_corpus_text(config: CorpusConfig, copy: Path | None = None) -> str:
    """The text to train on, or a run's own `copy` of one that differs between Python versions.

    Raises ValueError where there is none, or it is no text.
    """
    if copy is not None and copy.exists():
        return read_text(copy)
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no text of its own; name a UTF-8 text with --data PATH"
        )
    if config.data in BUILT_IN:
        return python_documentation()
    # The published cleaning drops a number of the file's own characters, line ends included.
    return read_text(located(config.data), as_is=config.cleaning == "published")


def make_corpus(config: CorpusConfig, text: str, vocabulary: Vocabulary | None = None) -> Corpus:
    """Builds the vocabulary, splits off the held-out share, and lays both parts out.

    Raises ValueError where the text is too short for one batch, or has characters outside a
    vocabulary that takes the place of its own.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    text = first_characters(text, config)
    vocabulary, ids = _tokenize(config, text, vocabulary)
    if config.heldout_from == "lanes" and config.heldout_share:
        return Corpus(text, sha256, vocabulary, ids, *_split_lanes(config, ids))
    training, heldout = heldout_split(ids, config.heldout_share)
    sizes = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
    lay_out = published_batches if config.layout == "published" else lanes
    padded = None
    if heldout.size:
        context = training[-(config.sequence_length + 1) :]
        padded = padded_lanes(heldout, context=context, **sizes)
    return Corpus(text, sha256, vocabulary, ids, lay_out(training, **sizes), padded)


def first_characters(text: str, config: CorpusConfig) -> str:
    """The text's first characters, counted once its line ends (LF, CRLF or CR) are dealt with."""
    if config.line_ends != "keep":
        text = re.sub("\r\n|\r|\n", " " if config.line_ends == "space" else "", text)
    return text[: config.characters]


def _tokenize(config: CorpusConfig, text: str, known: Vocabulary | None) -> tuple[Vocabulary, Ids]:
    if config.tokens == "char":
        vocabulary = known_characters(known, text, config) or build_char_vocabulary(text)
        return vocabulary, vocabulary.encode(text)
    is_published = config.cleaning == "published"
    found = published_words(text) if is_published else words(text)
    build = published_vocabulary if is_published else build_word_vocabulary
    vocabulary = known or build(found, min_count=config.min_count)
    return vocabulary, vocabulary.encode_tokens(found)


def _split_lanes(config: CorpusConfig, ids: Ids) -> tuple[Lanes, PaddedLanes]:
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

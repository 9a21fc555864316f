"""Read a text and turn it into training and held-out token ids."""

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
"""Names of texts that come with Python, its documentation, in place of a file's."""


@dataclass(frozen=True)
class CorpusConfig(TrainConfig):
    """How a text is read, tokenised and laid out."""

    tokens: Vocabular[Literal["char", "word"]] = "char"  # type of token: a character, or a word.
    min_count: Vocabular[Count] = 1  # treat words that occur less often as unknown (words only).
    #: how to find words: "words", lower-cased runs of letters, digits, - and '; or "published", as
    #: in a published word model, which deletes line ends.
    cleaning: Literal["words", "published"] = "words"
    #: number of characters to take from the beginning of the text; None for all.
    characters: Count | None = None
    #: whether to "keep" line ends, replace each by a "space", or "drop" them.
    line_ends: Literal["keep", "space", "drop"] = "keep"
    #: "lanes": each batch continues the text of the previous one; "published": batches of
    #: consecutive pieces are shuffled although the carry is kept, as in a published word model.
    layout: Literal["lanes", "published"] = "lanes"
    #: which share to hold out: the "end" of the text, or the end of each of the batch's "lanes",
    #: spread over the whole text, as in some published notebooks.
    heldout_from: Literal["end", "lanes"] = "end"
    sequence_length: Count = 64  # time steps of truncated backpropagation through time.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "published" and self.heldout_from == "lanes" and self.heldout_share:
            raise ValueError('layout "published" has no lanes; hold out from the "end"')
        if self.cleaning == "published" and self.tokens != "word":
            raise ValueError('cleaning "published" is of words; set tokens to "word"')


class Corpus(NamedTuple):
    """A text, laid out for training and evaluation.

    Every held-out token is predicted once. Each held-out lane starts with the T tokens of text
    before it, which are not counted.
    """

    text: str  # the text that was laid out
    sha256: str  # of the UTF-8 bytes of the text as read
    vocabulary: Vocabulary  # of the whole text, so the held-out part has no unknown characters
    ids: Ids  # int32 [N], the whole text
    training: Lanes | PublishedBatches
    heldout: PaddedLanes | None


def read_corpus_text(config: CorpusConfig, copy: Path | None = None) -> str:
    """Read the text to train on, or a run's `copy` of a text that depends on the Python version.

    Raises ValueError if there is none, or it is not text.
    """
    if copy is not None and copy.exists():
        return read_text(copy)
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no text of its own; name a UTF-8 text with --data PATH"
        )
    if config.data in BUILT_IN:
        return python_documentation()
    # The published cleaning drops a fixed number of the file's characters, line ends included.
    return read_text(located(config.data), as_is=config.cleaning == "published")


def make_corpus(config: CorpusConfig, text: str, vocabulary: Vocabulary | None = None) -> Corpus:
    """Build the vocabulary, split off the held-out share, and lay out both parts.

    Raises ValueError if the text is too short for a batch, or has characters not in `vocabulary`.
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
    """The first characters of the text, counted after its line ends are converted."""
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
    """Lay out the whole text, and hold out the same share at the end of every lane."""
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

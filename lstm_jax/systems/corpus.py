"""Read a text and turn it into training and held-out token ids."""

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lstm_jax.files import contents
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
    tokens_of_lines,
    words,
)
from lstm_jax.text.ids import Ids

BUILT_IN = frozenset(["python-docs"])
"""Names of texts that come with Python, its documentation, in place of a file's."""


@dataclass(frozen=True)
class CorpusConfig(TrainConfig):
    """How a text is read, tokenised and laid out."""

    #: type of token: a "char", a "word", or, in tokenized corpora, a "token": text between white
    #: space, with `<eos>` for each line end.
    tokens: Vocabular[Literal["char", "word", "token"]] = "char"
    min_count: Vocabular[Count] = 1  # treat words that occur less often as unknown.
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
    #: spread over the whole text, as in some published notebooks. A folder has a file for it.
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
    test: PaddedLanes | None = None


class Parts(NamedTuple):
    """A text, possibly with separate ones for validation and test."""

    training: str
    heldout: str = ""
    test: str = ""


def read_corpus_text(config: CorpusConfig, copy: Path | None = None) -> Parts:
    """Read the text to train on, or a run's `copy` of a text that depends on the Python version.

    A folder has a file per part, recognised by "train", "valid" and "test" (optional) in its name.
    Raises ValueError if there is none, or it is not text.
    """
    if copy is not None and copy.exists():
        return Parts(read_text(copy))
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no text of its own; name a UTF-8 text with --data PATH"
        )
    if config.data in BUILT_IN:
        return Parts(python_documentation())
    path = located(config.data)
    if not path.is_dir():
        # The published cleaning drops a fixed number of the file's characters, line ends included.
        return Parts(read_text(path, as_is=config.cleaning == "published"))
    parts = ("train", "valid", "test")
    files = [[each for each in path.glob("*") if part in each.name.lower()] for part in parts]
    if [len(found) for found in files[:2]] != [1, 1] or len(files[2]) > 1:
        raise ValueError(
            f"the folder {config.data!r} must hold one file with 'train' in its name, one with "
            f"'valid' and at most one with 'test', but {contents(path)}; put them there, or name a "
            "file"
        )
    return Parts(*(read_text(each) for found in files for each in found))


def make_corpus(
    config: CorpusConfig, text: str | Parts, vocabulary: Vocabulary | None = None
) -> Corpus:
    """Build the vocabulary, split off the held-out share, and lay out both parts.

    Raises ValueError if the text is too short for a batch, or has characters not in `vocabulary`.
    """
    parts = text if isinstance(text, Parts) else Parts(text)
    sha256 = hashlib.sha256("\0".join(filter(None, parts)).encode()).hexdigest()
    text, *others = parts = Parts(*(first_characters(each, config) for each in parts))
    vocabulary, (ids, *apart) = _tokenize(config, parts, vocabulary)
    if others[0]:
        for name, part, found in zip(("validation", "test"), others, apart, strict=True):
            if part and not found.size:
                raise ValueError(f"the {name} file has no tokens; give it some text")
        if apart[1].size and apart[1].size < config.batch_size:
            raise ValueError(
                f"the test file has {apart[1].size} tokens, fewer than batch_size, which is "
                f"{config.batch_size}; give more text, or lower it"
            )
        return Corpus(text, sha256, vocabulary, ids, *_laid_out(config, ids, *apart))
    if config.heldout_from == "lanes" and config.heldout_share:
        return Corpus(text, sha256, vocabulary, ids, *_split_lanes(config, ids))
    split = heldout_split(ids, config.heldout_share)
    return Corpus(text, sha256, vocabulary, ids, *_laid_out(config, *split))


def _laid_out(
    config: CorpusConfig, training: Ids, *others: Ids
) -> tuple[Lanes | PublishedBatches, *tuple[PaddedLanes | None, ...]]:
    """Lay out the training part, and the others, each with the end of the previous as context."""
    sizes = {"batch_size": config.batch_size, "sequence_length": config.sequence_length}
    lay_out = published_batches if config.layout == "published" else lanes
    padded: list[PaddedLanes | None] = []
    before = training
    for part in others:
        context = before[-(config.sequence_length + 1) :]
        padded.append(padded_lanes(part, context=context, **sizes) if part.size else None)
        before = part
    return lay_out(training, **sizes), *padded


def first_characters(text: str, config: CorpusConfig) -> str:
    """The first characters of the text, counted after its line ends are converted."""
    if config.line_ends != "keep":
        text = re.sub("\r\n|\r|\n", " " if config.line_ends == "space" else "", text)
    return text[: config.characters]


def _tokenize(
    config: CorpusConfig, parts: Parts, known: Vocabulary | None
) -> tuple[Vocabulary, list[Ids]]:
    if config.tokens == "char":
        text = "".join(parts)
        vocabulary = known_characters(known, text, config) or build_char_vocabulary(text)
        return vocabulary, [*map(vocabulary.encode, parts)]
    build: Callable[..., Vocabulary] = build_word_vocabulary
    split = words
    if config.cleaning == "published":
        build, split = published_vocabulary, published_words
    elif config.tokens == "token":
        build, split = partial(build, kind="token"), tokens_of_lines
    found = [split(part) if part else [] for part in parts]
    vocabulary = known or build(itertools.chain(*found), min_count=config.min_count)
    return vocabulary, [*map(vocabulary.encode_tokens, found)]


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

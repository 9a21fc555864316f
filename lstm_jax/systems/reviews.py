"""Sentiment classification of texts.

Shapes: T time, B batch, V vocabulary, E embedding size.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from lstm_jax.classifier import Classifier, ClassifierConfig, ClassifierParams
from lstm_jax.settings import (
    LARGEST_INTEGER,
    Bounds,
    Changeable,
    Count,
    CountOrZero,
    Share,
    Vocabular,
)
from lstm_jax.systems.base import (
    BatchSums,
    Objective,
    OptimizerConfig,
    SequencesSystem,
    TrainConfig,
)
from lstm_jax.systems.downloads import located
from lstm_jax.text import (
    Vocabulary,
    WordVectors,
    build_review_vocabulary,
    encode_review,
    pad_rows,
    read_reviews,
    read_vectors,
    review_words,
    split_rows,
)
from lstm_jax.text.ids import Ids
from lstm_jax.text.vectors import Missing


@dataclass(frozen=True)
class ReviewsConfig(TrainConfig):
    """Settings of a sentiment classifier."""

    heldout_share: Share = 0.2  # share of the reviews held out from training.
    sample_every: Changeable[CountOrZero] = 0  # interval between samples; 0 for none.
    #: number of words with an id, the most frequent ones, including four special tokens.
    vocabulary_size: Vocabular[Annotated[int, Bounds(5, LARGEST_INTEGER)]] = 10_000
    length: Count = 80  # maximum number of words per review.
    #: which words of a longer review to keep: the "last" or the "first".
    keep: Literal["last", "first"] = "last"
    #: text file of frozen word vectors (GloVe's format); None trains them from scratch.
    vectors: Changeable[str | None] = None
    #: fine-tune the vectors of that file instead of freezing them.
    train_vectors: Vocabular[bool] = False
    #: maximum number of padded lengths; reviews of similar length share a batch.
    widths: Count = 1
    model: ClassifierConfig = field(default_factory=ClassifierConfig)  # the network.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_vectors and self.vectors is None:
            raise ValueError("train_vectors needs vectors to begin with; name their file")


REVIEWS = ReviewsConfig(
    preset="reviews",
    data="imdb",
    batch_size=128,
    epochs=12,
    intervals="epochs",
    log_every=1,
    evaluate_every=1,
    checkpoint_every=1,
    patience=5,
    model=ClassifierConfig(
        layers=2,
        hidden_size=64,
        dropout=0.2,
        dropout_place="inputs",
        initialisation="keras",
        embedding_size=50,
        learn_missing=True,
        word_dropout=0.4,
        dense_size=32,
        dense_dropout=0.5,
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=None
    ),
)
"""Whether a film review is positive; after a published Keras system on frozen word vectors."""


class LabelledTexts(NamedTuple):
    """A batch of texts with labels."""

    tokens: Array  # int32 [T, B]
    mask: Array  # bool [T, B], True = a word
    labels: Array  # int32 [B], 1 = positive
    weights: Array  # float32 [B], 0 for padding rows

    @property
    def batch_axes(self) -> tuple[int | None, ...]:
        """See `axes_of`."""
        return (1, 1, 0, 0)


class Encoded(NamedTuple):
    """Reviews as ids, and their labels."""

    rows: Sequence[Ids]
    labels: npt.NDArray[np.int32]


@dataclass(frozen=True)
class ReviewObjective(Objective):
    """Predict the label of each text; see `Objective`."""

    model: Classifier

    def init(self, key: Array) -> ClassifierParams:
        return self.model.init(key)

    def sums(
        self,
        params: ClassifierParams,
        carry: tuple[()],
        data: LabelledTexts,
        index: Array,
        dropout_key: Array | None,
    ) -> tuple[BatchSums, tuple[()]]:
        tokens, mask, labels, weights = data
        found = self.model.sums(
            params, tokens, labels, mask=mask, weights=weights, dropout_key=dropout_key
        )
        return BatchSums({"": found}, mask.sum()), carry


@dataclass(frozen=True, eq=False)
class ReviewsSystem(SequencesSystem):
    """Labelled texts and the objective on them."""

    name: ClassVar = "reviews"
    Config: ClassVar = ReviewsConfig
    Model: ClassVar = Classifier
    presets: ClassVar = (REVIEWS,)
    published: ClassVar[Mapping[str, TrainConfig]] = {
        "reviews": dataclasses.replace(
            REVIEWS,
            patience=0,
            epochs=20,
            model=dataclasses.replace(
                REVIEWS.model, dropout=0.5, word_dropout=0.0, learn_missing=False
            ),
            optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=None),
        ),
    }
    has_perplexity: ClassVar = False
    used_step: ClassVar = "best"
    use: ClassVar = "classify texts with it: python -m lstm_jax classify"

    config: ReviewsConfig
    vocabulary: Vocabulary  # of the training texts
    sha256: str  # of all texts and labels
    vectors: WordVectors | None  # read from a file for the vocabulary's words, else None
    training: Encoded
    held_out: Encoded
    test: Encoded | None  # the data's own test set, if it has one

    @classmethod
    def read(
        cls, config: ReviewsConfig, kept: Path | None = None, vocabulary: Vocabulary | None = None
    ) -> Self:
        if config.data is None:
            raise ValueError(
                f"preset {config.preset!r} has no reviews of its own; name with --data PATH the "
                "aclImdb folder, its tar.gz, or a CSV or TSV file with columns text and label"
            )
        found, test = read_reviews(located(config.data))
        digest = hashlib.sha256()
        for text, label in zip(*found, strict=True):
            digest.update(f"{label} {len(text)} {text}".encode())
        split = [review_words(text) for text in found.texts]
        halves = split_rows(len(split), config.heldout_share, config.seed)
        if vocabulary is None:
            texts = (split[row] for row in halves[0])
            vocabulary = build_review_vocabulary(texts, config.vocabulary_size)
        ids = partial(_encoded, vocabulary, config)
        training, held_out = (
            Encoded(ids(split[row] for row in rows), found.labels[rows]) for rows in halves
        )
        tested = Encoded(ids(map(review_words, test.texts)), test.labels) if test else None
        vectors = None
        # A resumed run, or one initialised from another, has them among its parameters.
        if config.vectors is not None and kept is None and config.init_from is None:
            is_learnt = config.train_vectors
            keeps_zeros = config.model.learn_missing and not is_learnt
            missing: Missing = "zeros" if keeps_zeros else "drawn"
            vectors = read_vectors(config.vectors, vocabulary, seed=config.seed, missing=missing)
            model = dataclasses.replace(
                config.model,
                frozen_embedding=not is_learnt,
                embedding_size=vectors.table.shape[1],
            )
            config = dataclasses.replace(config, model=model)
        return cls(config, vocabulary, digest.hexdigest(), vectors, training, held_out, tested)

    @property
    def objective(self) -> ReviewObjective:
        return ReviewObjective(self.model)

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("vectors",) if self.config.model.frozen_embedding else ()

    def summary(self) -> str:
        summary = (
            f"{len(self.training.rows):,} reviews to train on and {len(self.held_out.rows):,} "
            f"held out, {len(self.vocabulary):,} words in the vocabulary"
        )
        if self.vectors is not None:
            frozen_fate = "learn one" if self.config.model.learn_missing else "keep random ones"
            fate = "begin with random ones" if self.config.train_vectors else frozen_fate
            summary += f", of which {len(self.vectors.missing):,} have no vector and {fate}"
        return summary

    def first_params(self, params: ClassifierParams) -> ClassifierParams:
        if self.vectors is None:
            return params
        table = jnp.asarray(self.vectors.table)
        return params._replace(vectors=table) if self.frozen else params._replace(embedding=table)

    def test_batches(self) -> Iterator[LabelledTexts]:
        return iter(()) if self.test is None else self.batches_of(self.test)

    def lengths(self, texts: Encoded) -> list[int]:
        return list(map(len, texts.rows))

    def batch_of(self, texts: Encoded, rows: npt.NDArray[np.int64], width: int) -> LabelledTexts:
        size, chosen = self.config.batch_size, [texts.rows[row] for row in rows]
        tokens, mask = pad_rows(chosen, width=width, batch_size=size, side="front")
        labels, weights = np.zeros(size, np.int32), np.zeros(size, np.float32)
        labels[: len(rows)], weights[: len(rows)] = texts.labels[rows], 1
        return LabelledTexts(tokens, mask, labels, weights)  # type: ignore[arg-type]


def probabilities(
    model: Classifier,
    params: ClassifierParams,
    vocabulary: Vocabulary,
    config: ReviewsConfig,
    texts: Sequence[str],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """Return the probability of label 1 for each of at most `batch_size` texts.

    Texts are cut as in training, and padded to a power of two, so few lengths are compiled.
    """
    rows = _encoded(vocabulary, config, map(review_words, map(vocabulary.in_known_form, texts)))
    width = 1 << (max(map(len, rows)) - 1).bit_length()
    tokens, mask = pad_rows(rows, width=width, batch_size=batch_size, side="front")
    return np.asarray(_probabilities(model, params, tokens, mask))[: len(texts)]


def _encoded(
    vocabulary: Vocabulary, config: ReviewsConfig, reviews: Iterable[list[str]]
) -> list[Ids]:
    return [encode_review(vocabulary, words, config.length, config.keep) for words in reviews]


@partial(jax.jit, static_argnums=0)
def _probabilities(
    model: Classifier, params: ClassifierParams, tokens: Array, mask: Array
) -> Array:
    return jax.nn.sigmoid(model.logits(params, tokens, mask=mask))

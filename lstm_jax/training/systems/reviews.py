"""A classifier of texts with a label.

Shapes: T time, B batch, V vocabulary, E embedding size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from lstm_jax import sharding
from lstm_jax.classifier import Classifier, ClassifierParams
from lstm_jax.text import LengthBatches, Vocabulary, bucket_widths, pad_rows, split_rows
from lstm_jax.text.checks import one_line
from lstm_jax.text.ids import Ids
from lstm_jax.text.reviews import (
    Reviews,
    build_review_vocabulary,
    encode_review,
    read_reviews,
    review_words,
)
from lstm_jax.text.vectors import Missing, WordVectors, read_vectors
from lstm_jax.training.config import ReviewsConfig
from lstm_jax.training.downloads import SOURCES, fetch
from lstm_jax.training.state import BatchSums

VECTORS_FILE = "vectors.npy"
"""Where a run folder keeps frozen vectors."""


class LabelledTexts(NamedTuple):
    """A batch.

    Attributes:
        tokens: int32 `[T, B]`.
        mask: bool `[T, B]`, True = a word.
        labels: int32 `[B]`, 1 = positive.
        weights: float32 `[B]`, 0 where a row only fills the batch up.
        vectors: float32 `[V, E]`, or None where vectors are trained.
    """

    tokens: Array
    mask: Array
    labels: Array
    weights: Array
    vectors: Array | None


class Encoded(NamedTuple):
    """Reviews as ids, and their labels."""

    rows: tuple[Ids, ...]
    labels: npt.NDArray[np.int32]


@dataclass(frozen=True)
class ReviewObjective:
    """The label of each text; see `Objective`."""

    model: Classifier

    def init(self, key: Array) -> ClassifierParams:
        """See `Objective`."""
        return self.model.init(key)

    def zero_carry(self, params: ClassifierParams, batch_size: int) -> tuple[()]:
        """See `Objective`: reviews know nothing of each other."""
        return ()

    def sums(
        self,
        params: ClassifierParams,
        carry: tuple[()],
        data: LabelledTexts,
        index: Array,
        dropout_key: Array | None,
    ) -> tuple[BatchSums, tuple[()]]:
        """See `Objective`."""
        found = self.model.sums(
            params,
            data.tokens,
            data.labels,
            mask=data.mask,
            weights=data.weights,
            vectors=data.vectors,
            dropout_key=dropout_key,
        )
        return BatchSums({"": found}, data.mask.sum()), carry


@dataclass(frozen=True, eq=False)
class ReviewsSystem:
    """See `System`.

    Attributes:
        config: the settings.
        vocabulary: of the texts that are trained on.
        sha256: of all texts and labels.
        vectors: of the vocabulary's words, from a file; None where none was read.
        training: what is trained on.
        held_out: what the best checkpoint is chosen by.
        test: the data's own test half, if it has one.
    """

    config: ReviewsConfig
    vocabulary: Vocabulary
    sha256: str
    vectors: WordVectors | None
    training: Encoded
    held_out: Encoded
    test: Encoded | None

    @property
    def has_perplexity(self) -> bool:
        """See `System`."""
        return False

    @property
    def model(self) -> Classifier:
        """The network."""
        return Classifier(self.config.model, len(self.vocabulary))

    @property
    def objective(self) -> ReviewObjective:
        """See `System`."""
        return ReviewObjective(self.model)

    @property
    def batches(self) -> int:
        """See `System`."""
        return -(-len(self.training.rows) // self.config.batch_size)

    @property
    def heldout_batch_size(self) -> int:
        """See `System`."""
        return self.config.batch_size if self.held_out.rows else 0

    @property
    def _frozen(self) -> npt.NDArray[np.float32] | None:
        """Vectors that travel with each batch, since they are no parameters."""
        if self.vectors is None or self.config.train_vectors:
            return None
        return self.vectors.table

    def summary(self) -> str:
        """See `System`."""
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
        """See `System`."""
        if self.vectors is None or not self.config.train_vectors:
            return params
        return params._replace(embedding=jnp.asarray(self.vectors.table))

    def files(self) -> dict[str, bytes]:
        """See `System`."""
        if self._frozen is None:
            return {}
        buffer = io.BytesIO()
        np.save(buffer, self._frozen, allow_pickle=False)
        return {VECTORS_FILE: buffer.getvalue()}

    def feed(self) -> Callable[[int], LabelledTexts]:
        """See `System`."""
        order = self._order(self.training)
        mesh = sharding.data_mesh(self.config.devices)
        vectors = self._vectors_on(mesh)

        def data(step: int) -> LabelledTexts:
            rows, width = order.batch(*divmod(step, order.batches))
            batch = self._batch(self.training, rows, width)
            tokens, mask = sharding.split_batch(mesh, (batch.tokens, batch.mask), axis=1)
            labels, weights = sharding.split_batch(mesh, (batch.labels, batch.weights), axis=0)
            return LabelledTexts(tokens, mask, labels, weights, vectors)

        return data

    def heldout(self) -> Iterator[LabelledTexts]:
        """See `System`."""
        return self._batches_of(self.held_out)

    def test_batches(self) -> Iterator[LabelledTexts]:
        """Batches that hold every review of the test half once."""
        return iter(()) if self.test is None else self._batches_of(self.test)

    def with_samples(self, *, replace: bool) -> ReviewsSystem:
        """See `System`: a classifier writes nothing."""
        return self

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        """See `System`: a classifier writes nothing."""
        return iter(())

    def _batches_of(self, texts: Encoded) -> Iterator[LabelledTexts]:
        vectors = self._vectors_on(sharding.data_mesh(1))
        for rows, width in self._order(texts).in_order():
            yield self._batch(texts, rows, width)._replace(vectors=vectors)

    def _vectors_on(self, mesh: Any) -> Array | None:
        if self._frozen is None:
            return None
        vectors: Array = sharding.put_whole(mesh, self._frozen)
        return vectors

    def _order(self, texts: Encoded) -> LengthBatches:
        lengths = np.array([len(row) for row in texts.rows], np.int64)
        widths = bucket_widths(lengths, self.config.widths)
        return LengthBatches(lengths, self.config.batch_size, widths, self.config.seed)

    def _batch(self, texts: Encoded, rows: npt.NDArray[np.int64], width: int) -> Any:
        size = self.config.batch_size
        padded = pad_rows(
            [texts.rows[row] for row in rows], width=width, batch_size=size, side="front"
        )
        labels, weights = np.zeros(size, np.int32), np.zeros(size, np.float32)
        labels[: len(rows)], weights[: len(rows)] = texts.labels[rows], 1
        return LabelledTexts(padded.tokens, padded.mask, labels, weights, None)  # type: ignore[arg-type]


def read_reviews_system(
    config: ReviewsConfig, kept: Path | None = None, vocabulary: Vocabulary | None = None
) -> ReviewsSystem:
    """Reads reviews and vectors; see `read_system`."""
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no reviews of its own; name with --data PATH the "
            "aclImdb folder, its tar.gz, or a CSV or TSV file with columns text and label"
        )
    source = SOURCES.get(config.data)
    found = read_reviews(config.data if source is None else fetch(source))
    digest = hashlib.sha256()
    for text, label in zip(found.training.texts, found.training.labels, strict=True):
        digest.update(f"{label} {len(text)} {text}".encode())
    split = [review_words(text) for text in found.training.texts]
    training, held_out = split_rows(len(split), config.heldout_share, config.seed)
    if vocabulary is None:
        texts = (split[row] for row in training)
        vocabulary = build_review_vocabulary(texts, config.vocabulary_size)

    def encoded(words: Sequence[list[str]], labels: npt.NDArray[np.int32]) -> Encoded:
        rows = (encode_review(vocabulary, each, config.length, config.keep) for each in words)
        return Encoded(tuple(rows), labels)

    def part(rows: npt.NDArray[np.int64]) -> Encoded:
        return encoded([split[row] for row in rows], found.training.labels[rows])

    config, vectors = _vectors(config, vocabulary, kept)
    return ReviewsSystem(
        config,
        vocabulary,
        digest.hexdigest(),
        vectors,
        part(training),
        part(held_out),
        None if found.test is None else _encoded_test(found.test, encoded),
    )


def probabilities(
    model: Classifier,
    params: ClassifierParams,
    vocabulary: Vocabulary,
    config: ReviewsConfig,
    texts: Sequence[str],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    """The probability of each of at most `batch_size` texts that its label is 1.

    Texts are cut as the run's were; lengths are padded to powers of two, so few are compiled.
    """
    known = map(vocabulary.in_known_form, texts)
    rows = [
        encode_review(vocabulary, review_words(text), config.length, config.keep) for text in known
    ]
    width = 1 << (max(map(len, rows)) - 1).bit_length()
    padded = pad_rows(rows, width=width, batch_size=batch_size, side="front")
    found = _probabilities(model, params, padded.tokens, padded.mask)
    return np.asarray(found)[: len(texts)]


@partial(jax.jit, static_argnums=0)
def _probabilities(
    model: Classifier, params: ClassifierParams, tokens: Array, mask: Array
) -> Array:
    return jax.nn.sigmoid(model.logits(params, tokens, mask=mask))


def _encoded_test(test: Reviews, encoded: Callable[..., Encoded]) -> Encoded:
    return encoded([review_words(text) for text in test.texts], test.labels)


def _vectors(
    config: ReviewsConfig, vocabulary: Vocabulary, kept: Path | None
) -> tuple[ReviewsConfig, WordVectors | None]:
    """The vectors of the file, or those that a run has kept; and a model config that fits."""
    # A run that has trained its vectors finds them among its parameters.
    if config.vectors is None or (config.train_vectors and kept is not None):
        return config, None
    if kept is None:
        keeps_zeros = config.model.learn_missing and not config.train_vectors
        missing: Missing = "zeros" if keeps_zeros else "drawn"
        vectors = read_vectors(config.vectors, vocabulary, seed=config.seed, missing=missing)
    else:
        vectors = WordVectors(load_vectors(kept / VECTORS_FILE), 0, ())
    model = dataclasses.replace(
        config.model,
        frozen_embedding=not config.train_vectors,
        embedding_size=vectors.table.shape[1],
    )
    return dataclasses.replace(config, model=model), vectors


def load_vectors(path: Path) -> npt.NDArray[np.float32]:
    """The frozen vectors that a run folder keeps, float32 `[V, E]`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        # np.load would also take an .npz, and gives no array then.
        with path.open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # whatever becomes of broken files
        raise ValueError(f"{path} cannot be used: {one_line(error)}; restore it") from None
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise ValueError(f"{path} holds no table of finite float32 vectors; restore it")
    return np.asarray(vectors, np.float32)

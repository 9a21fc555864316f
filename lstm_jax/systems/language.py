"""Language models of a single text, whose carry passes from batch to batch.

Shapes: T steps of truncated backpropagation through time, B batch, N rows of the corpus.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lstm_jax import sharding
from lstm_jax.dropout import dropout_mask, fold
from lstm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    LanguageModelParams,
    with_frequencies,
)
from lstm_jax.settings import Changeable, CountOrZero, Share
from lstm_jax.stack import without_backward_carry
from lstm_jax.systems.base import (
    AnyArray,
    BatchSums,
    OptimizerConfig,
    OutputBias,
    Predictions,
    SampleConfig,
    System,
    TrainConfig,
)
from lstm_jax.systems.corpus import BUILT_IN, Corpus, CorpusConfig, make_corpus, read_corpus_text
from lstm_jax.systems.published import PublishedBatches
from lstm_jax.systems.writer import prompt_template, write_samples
from lstm_jax.text import PaddedLanes, Vocabulary

CORPUS_FILE = "corpus.txt"  # where a run folder keeps a text that is not a user's file


@dataclass(frozen=True)
class LanguageConfig(CorpusConfig):
    """Settings of a language model of a single text."""

    #: pass a bidirectional model's backward carry from batch to batch too, as published, instead of
    #: starting each batch from zeros.
    carry_backward: bool = False
    #: probability of zeroing a sequence's carry before a training batch, so that the model also
    #: learns to start from nothing; 0 for never.
    zero_carry_rate: Changeable[Share] = 0.0
    #: stream a text larger than this to the device piece by piece.
    corpus_on_device_mb: Changeable[CountOrZero] = 1024
    #: initial bias of the output layer: "drawn" as for the model's other weights, or the logarithms
    #: of the tokens' "frequencies" in the training share.
    output_bias: OutputBias = "drawn"
    sample_prompts: Changeable[tuple[str, ...]] = ("The ",)  # prompts that samples continue.
    sample: Changeable[SampleConfig] = field(default_factory=SampleConfig)  # how samples are drawn.
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)  # the network.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sample_prompts or not all(self.sample_prompts):
            raise ValueError("sample_prompts holds an empty prompt; give at least one character")


DOCS = LanguageConfig(
    preset="docs",
    data="python-docs",
    heldout_share=0.05,
    batch_size=16,
    zero_carry_rate=0.01,
    evaluate_every=1000,
    checkpoint_every=1000,
    sample_every=1000,
    sample=SampleConfig(temperature=0.7),
    model=LanguageModelConfig(hidden_size=256, initialisation="keras"),
    optimizer=OptimizerConfig(
        learning_rate=8e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
    ),
)
"""The default: Python's documentation, character by character, in about two minutes."""


ANNA = LanguageConfig(
    preset="anna",
    data="anna",
    heldout_share=0.0,
    batch_size=100,
    sequence_length=100,
    zero_carry_rate=0.01,
    epochs=5,
    evaluate_every=100,
    checkpoint_every=100,
    keep_checkpoints=100,
    sample_every=200,
    sample_prompts=("Far",),
    sample=SampleConfig(top_n=5),
    model=LanguageModelConfig(
        layers=2,
        hidden_size=512,
        dropout=0.5,
        dropout_place="outputs",
        initialisation="tf1",
        output_stddev=0.1,
    ),
)
"""A novel, character by character, after a published TensorFlow notebook."""


SHAKESPEARE = LanguageConfig(
    preset="shakespeare",
    data="tinyshakespeare",
    tokens="word",
    min_count=6,
    output_bias="frequencies",
    batch_size=20,
    sequence_length=50,
    zero_carry_rate=0.01,
    evaluate_every=50,
    sample_every=50,
    sample_prompts=("thou art more", "to be or not to", "wherefore art thou"),
    sample=SampleConfig(length=10),
    model=LanguageModelConfig(
        hidden_size=128,
        embedding_size=128,
        dropout=0.5,
        dropout_place="outputs",
        initialisation="tf1",
        embedding_stddev=1.0,
    ),
    optimizer=OptimizerConfig(clip_norm=4.5),
)
"""Plays, word by word, after a published TensorFlow recipe.

The recipe's 100 sequences are for five times as much text; 20 keep the number of steps per epoch.
"""


WORDLM = dataclasses.replace(
    SHAKESPEARE,
    preset="wordlm",
    sequence_length=35,
    epochs=60,
    intervals="epochs",
    log_every=1,
    evaluate_every=1,
    checkpoint_every=5,
    sample_every=10,
    weight_drop=0.5,
    model=LanguageModelConfig(
        hidden_size=256,
        embedding_size=256,
        embedding_stddev=0.1,
        tied=True,
        dropout=0.5,
        dropout_place="inputs",
        output_dropout=0.5,
        output_dropout_per="sequence",
        word_dropout=0.1,
    ),
    optimizer=OptimizerConfig(
        method="sgd", learning_rate=30.0, clip_norm=0.25, weight_decay=1.2e-6, average_after=5
    ),
)
"""Any text of words, strongly regularised; after Merity et al. (2018)."""


LYRICS = LanguageConfig(
    preset="lyrics",
    heldout_share=0.0,
    characters=10_000,
    line_ends="space",
    batch_size=32,
    sequence_length=35,
    epochs=160,
    intervals="epochs",
    log_every=1,
    evaluate_every=0,
    checkpoint_every=40,
    sample_every=40,
    sample_prompts=("分开", "不分开"),
    sample=SampleConfig(length=50, temperature=0.0),
    model=LanguageModelConfig(hidden_size=256),
    optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=1e-2),
)
"""Ten thousand characters to memorise, with any cell, after a published PyTorch text."""


class LaneRows(NamedTuple):
    """The lanes of a corpus in which a step finds its batch."""

    #: int32 `[N, B]`, time first: all lanes, or a chunk of them that contains this step's batch
    rows: AnyArray
    first_row: Array | np.int32  # row of the corpus at which `rows` begins

    @property
    def batch_axes(self) -> tuple[int | None, ...]:
        """See `axes_of`."""
        return (1, None)


@dataclass(frozen=True)
class LanguageObjective:
    """Next-token prediction; see `Objective`, and `LanguageConfig` for the options."""

    model: LanguageModel
    sequence_length: int
    carry_backward: bool = False
    zero_carry_rate: float = 0.0

    def init(self, key: Array) -> LanguageModelParams:
        return self.model.init(key)

    def vocabulary_specs(self, axis: str) -> Any:
        return self.model.vocabulary_specs(axis)

    def zero_carry(self, params: LanguageModelParams, batch_size: int) -> Any:
        return self.model.zero_carry(params, batch_size)

    def sums(
        self,
        params: LanguageModelParams,
        carry: Any,
        data: LaneRows | Predictions,
        index: Array,
        dropout_key: Array | None,
    ) -> tuple[BatchSums, Any]:
        if isinstance(data, LaneRows):
            start = index * self.sequence_length - data.first_row
            tokens_TB = lax.dynamic_slice_in_dim(data.rows, start, self.sequence_length + 1)
            data = Predictions(tokens_TB[:-1], tokens_TB[1:], None)
        if not self.carry_backward:
            carry = without_backward_carry(carry)
        if self.zero_carry_rate and dropout_key is not None:
            carry = _zero_at_random(fold(dropout_key, 0), self.zero_carry_rate, carry)
            dropout_key = fold(dropout_key, 1)
        inputs, targets, mask = jax.tree.map(jnp.asarray, tuple(data))
        found, carry = self.model.token_sums(
            params, carry, inputs, targets, mask=mask, dropout_key=dropout_key,
            axis=sharding.tensor_axis(),
        )  # fmt: skip
        return BatchSums({"": found}, found.weight), carry


def _zero_at_random(key: Array, rate: float, carry: Any) -> Any:
    """Zero each lane's carry, leaves of `[B, H]`, with probability `rate`."""
    batch_size = jax.tree.leaves(carry)[0].shape[0]
    is_kept_B1 = dropout_mask(key, rate, (batch_size, 1), jnp.float32) > 0
    return jax.tree.map(lambda leaf_BH: jnp.where(is_kept_B1, leaf_BH, 0), carry)


@dataclass(frozen=True)
class LanguageSystem(System):
    """A laid-out text and the objective on it."""

    name: ClassVar = "language"
    Config: ClassVar = LanguageConfig
    Model: ClassVar = LanguageModel
    presets: ClassVar = (DOCS, ANNA, SHAKESPEARE, WORDLM, LYRICS)
    published: ClassVar[Mapping[str, TrainConfig]] = {
        "anna": dataclasses.replace(ANNA, zero_carry_rate=0.0),
        "shakespeare": dataclasses.replace(
            SHAKESPEARE,
            cleaning="published",
            layout="published",
            heldout_share=0.0,
            zero_carry_rate=0.0,
            batch_size=100,
            output_bias="drawn",
            sample=SampleConfig(length=10, temperature=0.0, unknown="ends"),
            model=dataclasses.replace(
                SHAKESPEARE.model, dropout=0.0, output_stddev=1.0, output_truncated=False
            ),
        ),
        "lyrics": dataclasses.replace(LYRICS, carry_backward=True),
    }

    config: LanguageConfig
    corpus: Corpus

    @classmethod
    def read(
        cls, config: LanguageConfig, kept: Path | None = None, vocabulary: Vocabulary | None = None
    ) -> Self:
        text = read_corpus_text(config, None if kept is None else kept / CORPUS_FILE)
        return cls(config, make_corpus(config, text, vocabulary))

    @property
    def vocabulary(self) -> Vocabulary:  # type: ignore[override]
        """Vocabulary of the whole text."""
        return self.corpus.vocabulary

    @property
    def sha256(self) -> str:  # type: ignore[override]
        """Hash of the text as read."""
        return self.corpus.sha256

    @property
    def objective(self) -> LanguageObjective:
        config = self.config
        return LanguageObjective(
            self.model, config.sequence_length, config.carry_backward, config.zero_carry_rate
        )

    @property
    def batches(self) -> int:
        return self.corpus.training.batches

    @property
    def heldout_batch_size(self) -> int:
        return 0 if self.corpus.heldout is None else self.corpus.heldout.inputs.shape[1]

    def summary(self) -> str:
        writes = not (self.config.model.bidirectional and self.config.sample_every)
        note = "" if writes else "; a bidirectional model cannot write, so there are no samples"
        return (
            f"{len(self.corpus.text):,} characters, {len(self.vocabulary):,} tokens in the "
            f"vocabulary{note}"
        )

    def first_params(self, params: LanguageModelParams) -> LanguageModelParams:
        if self.config.output_bias == "drawn":
            return params
        targets = self.corpus.training.targets
        counts = np.bincount(targets.reshape(-1), minlength=len(self.vocabulary))
        return with_frequencies(params, jnp.asarray(counts))

    def files(self) -> dict[str, bytes]:
        """A built-in text, which differs between versions of Python."""
        is_built_in = self.config.data in BUILT_IN
        return {CORPUS_FILE: self.corpus.text.encode()} if is_built_in else {}

    def feed(self) -> Callable[[int], Any]:
        mesh, training = self.config.mesh, self.corpus.training
        if isinstance(training, PublishedBatches):
            seed = self.config.seed
            return lambda step: sharding.put_batch(
                mesh, Predictions(*training.batch(step, seed), None)
            )
        times, batches, rows = training.sequence_length, training.batches, training.tokens
        affordable = (self.config.corpus_on_device_mb << 20) // rows[:times].nbytes
        stretch = max(1, min(batches, affordable))

        @lru_cache(maxsize=1)
        def on_device(first: int) -> LaneRows:
            held = rows[first * times : (first + stretch) * times + 1]
            return sharding.put_batch(mesh, LaneRows(held, np.int32(first * times)))

        def stretch_of(step: int) -> LaneRows:
            batch = step % batches
            return on_device(min(batch // stretch * stretch, batches - stretch))

        return stretch_of

    def heldout(self) -> Iterator[Predictions]:
        return self._in_order(self.corpus.heldout)

    def test_batches(self) -> Iterator[Predictions]:
        return self._in_order(self.corpus.test)

    def _in_order(self, lanes: PaddedLanes | None) -> Iterator[Predictions]:
        times = self.config.sequence_length
        for first in range(0, 0 if lanes is None else len(lanes.inputs), times):
            yield Predictions(*(part[first : first + times] for part in lanes or ()))

    def with_samples(self, *, replace: bool) -> Self:
        prompts = self.config.sample_prompts
        if replace:
            fitting = (prompt for prompt in prompts if not self.vocabulary.outside(prompt))
            prompts = tuple(fitting) or (self._beginning(),)
        for prompt in prompts:
            self.vocabulary.encode_prompt(prompt)
        config = dataclasses.replace(self.config, sample_prompts=prompts)
        return dataclasses.replace(self, config=config)

    def _beginning(self) -> str:
        """The text's first known word, or its first characters if it has no words."""
        if self.vocabulary.is_of_words:
            ids = self.corpus.ids.tolist()
            known = (token for token in ids if token != self.vocabulary.unknown)
            return self.vocabulary.tokens[next(known, 0)]
        return (self.corpus.text.split() or [self.corpus.text])[0][:20]

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        if self.config.model.bidirectional:
            return iter(())
        length, prompts = self.config.sample.length, self.config.sample_prompts
        templates = {each: prompt_template(self.vocabulary, each, length) for each in prompts}
        return write_samples(self, params, step, templates)

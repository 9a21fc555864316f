"""A character model of many short poems, each a sequence of its own, that fills acrostics.

Shapes: T time, B batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from lstm_jax import sharding
from lstm_jax.losses import TokenSums
from lstm_jax.models import LanguageModel, LanguageModelParams, with_frequencies
from lstm_jax.text import (
    LengthBatches,
    Poems,
    Vocabulary,
    bucket_widths,
    build_poem_vocabulary,
    prediction_rows,
    prediction_steps,
    read_lines,
    read_poems,
    split_rows,
)
from lstm_jax.text.ids import Ids
from lstm_jax.training.config import PoemsConfig
from lstm_jax.training.state import BatchSums
from lstm_jax.training.systems.corpus import known_characters
from lstm_jax.training.systems.language import Predictions
from lstm_jax.training.writing import BLANK, blanks_template, joined, sample_writer


@dataclass(frozen=True)
class PoemObjective:
    """The next character of each poem, and its end; see `Objective`.

    The end is the padding's id as a target; its sums are a part of their own, `end_`.
    """

    model: LanguageModel

    def init(self, key: Array) -> LanguageModelParams:
        """See `Objective`."""
        return self.model.init(key)

    def zero_carry(self, params: LanguageModelParams, batch_size: int) -> tuple[()]:
        """See `Objective`: poems know nothing of each other."""
        return ()

    def sums(
        self,
        params: LanguageModelParams,
        carry: tuple[()],
        data: Predictions,
        index: Array,
        dropout_key: Array | None,
    ) -> tuple[BatchSums, tuple[()]]:
        """See `Objective`."""
        inputs, targets, mask = map(jnp.asarray, data)
        sums, scores_TB, _ = self.model.token_scores(
            params, None, inputs, targets, mask=mask, dropout_key=dropout_key
        )
        is_end_TB = mask & (targets == 0)
        end = TokenSums(
            jnp.sum(jnp.where(is_end_TB, scores_TB.loss, 0)),
            jnp.sum(jnp.where(is_end_TB, scores_TB.correct, 0)),
            jnp.sum(is_end_TB).astype(sums.weight.dtype),
        )
        # The gradient is that of the sum of both losses, and all of it flows through `sums.loss`.
        end = jax.tree.map(jax.lax.stop_gradient, end)
        characters = jax.tree.map(jnp.subtract, sums, end)
        return BatchSums({"": characters, "end_": end}, sums.weight), carry


@dataclass(frozen=True, eq=False)
class PoemsSystem:
    """See `System`.

    Attributes:
        config: the settings.
        vocabulary: of all poems.
        sha256: of the file's text.
        found: the poems.
        training: ids of each poem that is trained on.
        held_out: ids of each one that is not.
    """

    config: PoemsConfig
    vocabulary: Vocabulary
    sha256: str
    found: Poems
    training: tuple[Ids, ...]
    held_out: tuple[Ids, ...]

    @property
    def has_perplexity(self) -> bool:
        """See `System`."""
        return True

    @property
    def model(self) -> LanguageModel:
        """The network."""
        return LanguageModel(self.config.model, len(self.vocabulary))

    @property
    def objective(self) -> PoemObjective:
        """See `System`."""
        return PoemObjective(self.model)

    @property
    def batches(self) -> int:
        """See `System`."""
        return -(-len(self.training) // self.config.batch_size)

    @property
    def heldout_batch_size(self) -> int:
        """See `System`."""
        return self.config.batch_size if self.held_out else 0

    def summary(self) -> str:
        """See `System`."""
        found = self.found
        summary = (
            f"{len(self.training):,} poems to train on and {len(self.held_out):,} held out, "
            f"{len(self.vocabulary):,} characters in the vocabulary; of {found.lines:,} lines "
            f"{found.empty:,} were empty poems and {found.repeated:,} repeated ones"
        )
        summary += ", left out" if self.config.drop_unfit else ", kept"
        if found.malformed:
            summary += f"; {found.malformed:,} without a colon were left out"
        if found.cut:
            summary += f"; {found.cut:,} were cut to {self.config.length} characters"
        return summary

    def first_params(self, params: LanguageModelParams) -> LanguageModelParams:
        """See `System`; the end is among the targets."""
        if self.config.output_bias == "drawn":
            return params
        targets = np.concatenate([poem[1:] for poem in self.training])
        counts = np.bincount(targets, minlength=len(self.vocabulary))
        counts[0] = sum(len(poem) < self.config.length for poem in self.training)
        return with_frequencies(params, jnp.asarray(counts))

    def files(self) -> dict[str, bytes]:
        """See `System`."""
        return {}

    def feed(self) -> Callable[[int], Predictions]:
        """See `System`."""
        mesh = sharding.data_mesh(self.config.devices)
        order = self._order(self.training)

        def data(step: int) -> Predictions:
            rows, width = order.batch(*divmod(step, order.batches))
            batch = self._batch([self.training[row] for row in rows], width)
            split: Predictions = sharding.split_batch(mesh, batch, axis=1)
            return split

        return data

    def heldout(self) -> Iterator[Predictions]:
        """See `System`."""
        for rows, width in self._order(self.held_out).in_order():
            yield self._batch([self.held_out[row] for row in rows], width)

    def with_samples(self, *, replace: bool) -> PoemsSystem:
        """See `System`; a template without given characters fits any poems."""
        for template in self.config.sample_templates:
            blanks_template(self.vocabulary, template)
        return self

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        """See `System`."""
        key = random.fold_in(random.key(self.config.seed), step)
        writer = sample_writer(self.model, params, self.vocabulary, self.config.sample)
        for text in self.config.sample_templates:
            template = blanks_template(self.vocabulary, text)
            (written,) = writer.write([template], key=key)
            yield text, joined(self.vocabulary, written.tokens)

    def _order(self, poems: tuple[Ids, ...]) -> LengthBatches:
        lengths = prediction_steps([len(poem) for poem in poems], self.config.length)
        widths = bucket_widths(lengths, self.config.widths)
        return LengthBatches(lengths, self.config.batch_size, widths, self.config.seed)

    def _batch(self, poems: list[Ids], width: int) -> Predictions:
        rows = prediction_rows(
            poems, width=width, batch_size=self.config.batch_size, longest=self.config.length
        )
        return Predictions(rows.inputs, rows.targets, rows.mask)


def read_poems_system(config: PoemsConfig, vocabulary: Vocabulary | None = None) -> PoemsSystem:
    """Reads a file of poems; see `read_system`."""
    if config.data is None:
        raise ValueError(
            f"preset {config.preset!r} has no poems of its own; name a UTF-8 text of lines "
            "title:poem with --data PATH"
        )
    text = "\n".join(read_lines(config.data))
    found = read_poems(
        text,
        length=config.length,
        keep=config.keep,
        drop_empty=config.drop_unfit,
        drop_repeated=config.drop_unfit,
    )
    if vocabulary is None:
        vocabulary = build_poem_vocabulary(found.poems)
    else:
        vocabulary = known_characters(vocabulary, "".join(found.poems), config)
    if BLANK in vocabulary:
        raise ValueError(
            f"{config.data} holds poems with a {BLANK}, which is what templates mark places to "
            "fill with; replace it"
        )
    ids = [vocabulary.encode(poem) for poem in found.poems]
    # An empty poem has nothing to read, so nothing to predict.
    ids = [poem for poem in ids if poem.size]
    seed = config.seed if config.heldout_from == "random" else None
    training, held_out = split_rows(len(ids), config.heldout_share, seed)
    return PoemsSystem(
        config,
        vocabulary,
        hashlib.sha256(text.encode()).hexdigest(),
        found,
        tuple(ids[row] for row in training),
        tuple(ids[row] for row in held_out),
    )

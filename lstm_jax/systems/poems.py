"""Character models of many short poems, each an independent sequence, that fill in acrostics.

Shapes: T time, B batch.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from lstm_jax.losses import TokenSums
from lstm_jax.models import (
    LanguageModel,
    LanguageModelConfig,
    LanguageModelParams,
    with_frequencies,
)
from lstm_jax.settings import LARGEST_INTEGER, Bounds, Changeable, Count, Share
from lstm_jax.sharding import tensor_axis
from lstm_jax.systems.base import (
    BatchSums,
    Objective,
    OptimizerConfig,
    OutputBias,
    Predictions,
    SampleConfig,
    SequencesSystem,
    TrainConfig,
    known_characters,
)
from lstm_jax.systems.writer import BLANK, blanks_template, write_samples
from lstm_jax.text import Vocabulary, pad_rows, read_lines, split_rows
from lstm_jax.text.ids import Ids
from lstm_jax.text.vocabulary import by_frequency

PADDING_CHARACTER = "\0"


@dataclass(frozen=True)
class PoemsConfig(TrainConfig):
    """Settings of a model of short poems."""

    heldout_share: Share = 0.2  # share of the poems held out from training.
    #: maximum number of characters per poem, at least 2.
    length: Annotated[int, Bounds(2, LARGEST_INTEGER)] = 50
    #: which characters of a longer poem to keep: the "first" or the "last".
    keep: Literal["first", "last"] = "first"
    drop_unfit: bool = True  # leave out empty and repeated poems.
    #: which share to hold out: a "random" one, drawn by the seed, or the "last".
    heldout_from: Literal["random", "last"] = "random"
    #: maximum number of padded lengths; poems of similar length share a batch.
    widths: Count = 6
    #: initial bias of the output layer, see `LanguageConfig`: "drawn", or log "frequencies".
    output_bias: OutputBias = "drawn"
    #: template of samples: each * is filled in, other characters are kept.
    sample_templates: Changeable[tuple[str, ...]] = ("*" * 20,)
    #: how samples are drawn; their length is that of the template.
    sample: Changeable[SampleConfig] = field(default_factory=SampleConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)  # the network.

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sample_templates or not all(self.sample_templates):
            raise ValueError("sample_templates holds an empty template; give at least one place")
        if self.model.bidirectional:
            raise ValueError("a bidirectional model sees what it is to fill in; it cannot write")


POEMS = PoemsConfig(
    preset="poems",
    output_bias="frequencies",
    intervals="epochs",
    log_every=1,
    evaluate_every=1,
    checkpoint_every=1,
    sample_every=1,
    model=LanguageModelConfig(
        hidden_size=256,
        embedding_size=256,
        tied=True,
        dropout=0.4,
        dropout_place="inputs",
        output_dropout=0.5,
        initialisation="keras",
    ),
    optimizer=OptimizerConfig(
        learning_rate=3e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0
    ),
)
"""Short poems, character by character, that fill in acrostics; after a published Keras system.

Its own network (`--as-published`) learns little more than an n-gram model and soon overfits.
"""


class Poems(NamedTuple):
    """Poems that `read_poems` kept, in text order and without white space, with counts of lines."""

    poems: tuple[str, ...]
    lines: int  # not blank
    empty: int  # with a title only
    repeated: int  # non-empty poems that occur on an earlier line, kept or not
    malformed: int  # without a colon
    cut: int  # kept poems that were longer than `length`


@dataclass(frozen=True)
class PoemObjective(Objective):
    """Predict the next character of each poem, and its end; see `Objective`.

    The end is the padding id as a target; its sums form a separate part, `end_`.
    """

    model: LanguageModel

    def init(self, key: Array) -> LanguageModelParams:
        return self.model.init(key)

    def vocabulary_specs(self, axis: str) -> Any:
        return self.model.vocabulary_specs(axis)

    def sums(
        self,
        params: LanguageModelParams,
        carry: tuple[()],
        data: Predictions,
        index: Array,
        dropout_key: Array | None,
    ) -> tuple[BatchSums, tuple[()]]:
        inputs, targets, mask = map(jnp.asarray, data)
        axis = tensor_axis()
        sums, scores_TB, _ = self.model.token_scores(
            params, None, inputs, targets, mask=mask, dropout_key=dropout_key, axis=axis
        )
        is_end_TB = mask & (targets == 0)
        end = TokenSums(
            jnp.sum(jnp.where(is_end_TB, scores_TB.loss, 0)),
            jnp.sum(jnp.where(is_end_TB, scores_TB.correct, 0)),
            jnp.sum(is_end_TB).astype(sums.weight.dtype),
        )
        if axis is not None:  # psum, as in the model's sums
            end = jax.lax.psum(end, axis)
        # The gradient, that of the sum of both losses, flows entirely through `sums.loss`.
        end = jax.tree.map(jax.lax.stop_gradient, end)
        characters = jax.tree.map(jnp.subtract, sums, end)
        return BatchSums({"": characters, "end_": end}, sums.weight), carry


@dataclass(frozen=True, eq=False)
class PoemsSystem(SequencesSystem):
    """The poems in `found`, and the objective on their ids."""

    name: ClassVar = "poems"
    Config: ClassVar = PoemsConfig
    Model: ClassVar = LanguageModel
    presets: ClassVar = (POEMS,)
    published: ClassVar[Mapping[str, TrainConfig]] = {
        "poems": dataclasses.replace(
            POEMS,
            keep="last",
            drop_unfit=False,
            heldout_from="last",
            widths=1,
            output_bias="drawn",
            batch_size=128,
            model=LanguageModelConfig(hidden_size=64, embedding_size=128, initialisation="keras"),
            optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=None),
        ),
    }

    config: PoemsConfig
    vocabulary: Vocabulary
    sha256: str
    found: Poems
    training: tuple[Ids, ...]
    held_out: tuple[Ids, ...]

    @classmethod
    def read(
        cls, config: PoemsConfig, kept: Path | None = None, vocabulary: Vocabulary | None = None
    ) -> Self:
        if config.data is None:
            raise ValueError(
                f"preset {config.preset!r} has no poems of its own; name a UTF-8 text of lines "
                "title:poem with --data PATH"
            )
        text = "\n".join(read_lines(config.data))
        found = read_poems(
            text, length=config.length, keep=config.keep, drop_unfit=config.drop_unfit
        )
        known = known_characters(vocabulary, "".join(found.poems), config)
        vocabulary = known or build_poem_vocabulary(found.poems)
        if BLANK in vocabulary:
            raise ValueError(
                f"{config.data} holds poems with a {BLANK}, which is what templates mark places to "
                "fill with; replace it"
            )
        # An empty poem has nothing to predict from.
        ids = [vocabulary.encode(poem) for poem in found.poems if poem]
        seed = config.seed if config.heldout_from == "random" else None
        halves = split_rows(len(ids), config.heldout_share, seed)
        training, held_out = (tuple(ids[row] for row in rows) for rows in halves)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return cls(config, vocabulary, sha256, found, training, held_out)

    @property
    def objective(self) -> PoemObjective:
        return PoemObjective(self.model)

    def summary(self) -> str:
        found = self.found
        return (
            f"{len(self.training):,} poems to train on and {len(self.held_out):,} held out, "
            f"{len(self.vocabulary):,} characters in the vocabulary; of {found.lines:,} lines "
            f"{found.empty:,} were empty poems and {found.repeated:,} repeated ones, "
            f"{'left out' if self.config.drop_unfit else 'kept'}"
            + f"; {found.malformed:,} without a colon were left out" * (found.malformed > 0)
            + f"; {found.cut:,} were cut to {self.config.length} characters" * (found.cut > 0)
        )

    def first_params(self, params: LanguageModelParams) -> LanguageModelParams:
        if self.config.output_bias == "drawn":
            return params
        targets = np.concatenate([poem[1:] for poem in self.training])
        counts = np.bincount(targets, minlength=len(self.vocabulary))
        # Targets include the end.
        counts[0] = sum(len(poem) < self.config.length for poem in self.training)
        return with_frequencies(params, jnp.asarray(counts))

    def with_samples(self, *, replace: bool) -> Self:
        # A template without given characters, such as the default, fits any data.
        for template in self.config.sample_templates:
            blanks_template(self.vocabulary, template)
        return self

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        texts = self.config.sample_templates
        templates = {text: blanks_template(self.vocabulary, text) for text in texts}
        return write_samples(self, params, step, templates)

    def lengths(self, poems: tuple[Ids, ...]) -> list[int]:
        # A poem of maximum length has no end to predict.
        return [min(len(poem), self.config.length - 1) for poem in poems]

    def batch_of(
        self, poems: tuple[Ids, ...], rows: npt.NDArray[np.int64], width: int
    ) -> Predictions:
        """Each character of each poem with its target, the next one; 0, the end, follows the last.

        Equivalent to padding every poem with zeros up to `length`, and taking all but the last
        place as inputs and all but the first as targets.
        """
        size = {"width": width, "batch_size": self.config.batch_size}
        read = [poems[row][: self.config.length - 1] for row in rows]
        inputs, mask = pad_rows(read, **size, side="end")
        targets, _ = pad_rows([poems[row][1:] for row in rows], **size, side="end")
        return Predictions(inputs, targets, mask)


def read_poems(
    text: str,
    *,
    length: int = 50,
    keep: Literal["first", "last"] = "first",
    drop_unfit: bool = True,
) -> Poems:
    """Read the poems of `text`, one per line as `title:poem`; blank lines are ignored.

    The poem is what follows the first ':'. A full-width colon separates only in a line without an
    ASCII one: long titles of the Tang corpus quote sentences that contain it. `length`, `keep` and
    `drop_unfit` are as in `PoemsConfig`; poems are compared before they are cut. Raises ValueError
    if no poem is left.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    bodies = [body for body in map(_body, lines) if body is not None]
    distinct = [body for body in dict.fromkeys(bodies) if body]
    kept = distinct if drop_unfit else bodies
    empty, malformed = bodies.count(""), len(lines) - len(bodies)
    if not kept:
        raise ValueError(
            f"no poem is left of {len(lines)} lines ({malformed} without a colon, {empty} without "
            "a poem); give one poem a line, as title:poem"
        )
    part = slice(length) if keep == "first" else slice(-length, None)
    return Poems(
        poems=tuple(body[part] for body in kept),
        lines=len(lines),
        empty=empty,
        repeated=len(bodies) - empty - len(distinct),
        malformed=malformed,
        cut=sum(len(body) > length for body in kept),
    )


def build_poem_vocabulary(poems: Iterable[str]) -> Vocabulary:
    r"""Return the characters of `poems`, most frequent first; id 0 is the padding "\0".

    Ties are ordered by code point, so the order of the poems does not matter. Encoding a character
    outside the vocabulary is an error. Raises ValueError if there are no characters, or one is the
    padding or a lone surrogate.
    """
    counts = Counter("".join(poems))
    if not counts:
        raise ValueError("the poems hold no characters to build a vocabulary from; give some text")
    if PADDING_CHARACTER in counts:
        raise ValueError("a poem holds the character U+0000, which is the padding; remove it")
    return Vocabulary("char", (PADDING_CHARACTER, *by_frequency(counts)))


def _body(line: str) -> str | None:
    """Return the poem of a line without white space, or None if there is no colon."""
    for colon in (":", "："):  # noqa: RUF001
        _, found, body = line.partition(colon)
        if found:
            return "".join(body.split())
    return None

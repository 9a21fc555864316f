"""What a run is made of: frozen dataclasses, each default written once.

The command line is generated from these; the attributes' descriptions are its help texts.
"""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lstm_jax.classifier import ClassifierConfig
from lstm_jax.models import LanguageModelConfig

OutputBias = Literal["drawn", "frequencies"]
ScheduleName = Literal["constant", "cosine", "step", "exponential"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with clipping by global norm, and a learning-rate schedule.

    Attributes:
        learning_rate: the highest rate of the schedule.
        schedule: "constant"; "cosine" down to `final_share` over the run (a run that goes on for
            more steps takes the rate up to where a cosine of all of them is); "step": times
            `decay_rate` after every `decay_steps`; "exponential": the same, smoothly.
        warmup_steps: steps of linear rise from 0 before the schedule begins.
        decay_steps: interval of "step" and "exponential"; length of "cosine", by default the run's.
        decay_rate: factor of "step" and "exponential", 0 < rate <= 1.
        final_share: what "cosine" ends at, as a share of `learning_rate`.
        clip_norm: gradients with a larger global norm are scaled down to it; None never clips.
        beta1: decay of Adam's mean of gradients.
        beta2: decay of Adam's mean of squared gradients.
        epsilon: added to Adam's denominator.
    """

    learning_rate: float = 1e-3
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    decay_rate: float = 0.5
    final_share: float = 0.0
    clip_norm: float | None = 5.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _require_positive(
            self, "learning_rate", "clip_norm", "epsilon", "decay_rate", "decay_steps"
        )
        _require_share(self, "beta1", "beta2")
        if self.schedule not in get_args(ScheduleName):
            raise ValueError(
                f"schedule is {self.schedule!r}; choose one of {', '.join(get_args(ScheduleName))}"
            )
        if self.schedule in ("step", "exponential") and self.decay_steps is None:
            raise ValueError(f"schedule {self.schedule!r} needs decay_steps, its interval in steps")
        if self.decay_rate > 1:
            raise ValueError(f"decay_rate is {self.decay_rate}; it must be at most 1")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share is {self.final_share}; it must be from 0 to 1")
        _require_no_less_than_0(self, "warmup_steps")


@dataclass(frozen=True)
class TrainConfig:
    """What every run has, whatever it learns.

    Attributes:
        preset: the system that these settings began as.
        data: what to train on; None takes the preset's own corpus.
        init_from: the folder of a run whose weights and vocabulary this one begins with; its
            settings are the defaults. A character that it doesn't know is refused, a word unknown.
        heldout_share: share of the data that is held out of training.
        batch_size: sequences side by side.
        epochs: passes over the data.
        steps: optimizer steps in all; None for as many as the epochs have.
        seed: of initial weights, dropout, order and samples.
        devices: local devices that share each batch.
        intervals: what the intervals below count.
        log_every: from one row of metrics to the next.
        evaluate_every: from one held-out evaluation to the next; 0 only at the end.
        checkpoint_every: from one checkpoint to the next; 0 only at the end.
        sample_every: from one sample to the next; 0 for none.
        keep_checkpoints: how many of the latest checkpoints are kept, besides the best.
        patience: training ends after so many evaluations in a row without a better held-out loss;
            0 for never.
        skipped_at_most: training gives up after so many steps in a row whose loss or gradient is
            not finite, from which nothing is learnt; 0 for never.
        optimizer: how it learns.
    """

    preset: str = "custom"
    data: str | None = None
    init_from: str | None = None
    heldout_share: float = 0.1
    batch_size: int = 32
    epochs: int = 10
    steps: int | None = None
    seed: int = 0
    devices: int = 1
    intervals: Literal["steps", "epochs"] = "steps"
    log_every: int = 10
    evaluate_every: int = 500
    checkpoint_every: int = 500
    sample_every: int = 500
    keep_checkpoints: int = 3
    patience: int = 0
    skipped_at_most: int = 20
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _require_positive(
            self, "batch_size", "epochs", "steps", "devices", "log_every", "keep_checkpoints"
        )
        _require_no_less_than_0(
            self,
            "evaluate_every",
            "checkpoint_every",
            "sample_every",
            "patience",
            "skipped_at_most",
        )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")
        _require_share(self, "heldout_share")
        if self.patience and not self.heldout_share:
            raise ValueError("patience needs something held out; set heldout_share above 0")

    def steps_of(self, interval: int, batches: int) -> int:
        """An interval in steps, of which an epoch has `batches`."""
        return interval * (batches if self.intervals == "epochs" else 1)


@dataclass(frozen=True)
class SampleConfig:
    """How samples are drawn in training.

    Attributes:
        length: tokens of a sample.
        top_n: takes only the most likely n tokens; 0 for all.
        temperature: divides the logits; 0 takes the most likely token.
        unknown: whether the unknown token is "never" taken, or "ends" a sample.
    """

    length: int = 200
    top_n: int = 0
    temperature: float = 1.0
    unknown: Literal["never", "ends"] = "never"

    def __post_init__(self) -> None:
        _require_positive(self, "length")
        _require_no_less_than_0(self, "top_n", "temperature")
        if self.length > _LONGEST_SAMPLE:
            raise ValueError(f"length is {self.length}; it must be at most {_LONGEST_SAMPLE}")


@dataclass(frozen=True)
class LanguageConfig(TrainConfig):
    """A language model of one text, whose carry goes from batch to batch.

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
        carry_backward: a bidirectional model's backward carry goes on from batch to batch too, as
            published; otherwise it starts each batch at zero.
        zero_carry_rate: how likely a sequence's carry is zeroed before a training batch, so that
            the model also learns to begin from nothing; 0 for never.
        corpus_on_device_mb: a text that takes more than this is fed to the device piece by piece.
        output_bias: whether the output layer's bias starts as the model's settings have it
            ("drawn"), or at the logarithms of the tokens' "frequencies" in the training share.
        sample_prompts: the prompts that samples go on from.
        sample: how samples are drawn.
        model: the network.
    """

    tokens: Literal["char", "word"] = "char"
    min_count: int = 1
    cleaning: Literal["words", "published"] = "words"
    characters: int | None = None
    line_ends: Literal["keep", "space", "drop"] = "keep"
    layout: Literal["lanes", "published"] = "lanes"
    heldout_from: Literal["end", "lanes"] = "end"
    sequence_length: int = 64
    carry_backward: bool = False
    zero_carry_rate: float = 0.0
    corpus_on_device_mb: int = 1024
    output_bias: OutputBias = "drawn"
    sample_prompts: tuple[str, ...] = ("The ",)
    sample: SampleConfig = field(default_factory=SampleConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "min_count", "sequence_length", "characters")
        _require_share(self, "zero_carry_rate")
        _require_no_less_than_0(self, "corpus_on_device_mb")
        if not self.sample_prompts or not all(self.sample_prompts):
            raise ValueError("sample_prompts holds an empty prompt; give at least one character")
        if self.layout == "published" and self.heldout_from == "lanes" and self.heldout_share:
            raise ValueError('layout "published" has no lanes; hold out from the "end"')
        if self.cleaning == "published" and self.tokens != "word":
            raise ValueError('cleaning "published" is of words; set tokens to "word"')


@dataclass(frozen=True)
class PoemsConfig(TrainConfig):
    """A character model of many short poems, each a sequence of its own.

    Attributes:
        length: the most characters of a poem.
        keep: which characters of a longer one: its "first" or its "last".
        drop_unfit: leave empty and repeated poems out.
        heldout_from: which share is held out: a "random" one, drawn by the seed, or the "last".
        widths: how many lengths batches may be padded to; poems of like length share a batch.
        output_bias: see `LanguageConfig`.
        sample_templates: what samples fill: a character stands where it is, each * is filled.
        sample: how samples are drawn; their length is the template's.
        model: the network.
    """

    heldout_share: float = 0.2
    length: int = 50
    keep: Literal["first", "last"] = "first"
    drop_unfit: bool = True
    heldout_from: Literal["random", "last"] = "random"
    widths: int = 6
    output_bias: OutputBias = "drawn"
    sample_templates: tuple[str, ...] = ("*" * 20,)
    sample: SampleConfig = field(default_factory=SampleConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "widths", "length")
        if self.length < 2:
            raise ValueError(f"length is {self.length}; a poem needs at least 2 characters")
        if not self.sample_templates or not all(self.sample_templates):
            raise ValueError("sample_templates holds an empty template; give at least one place")
        if self.model.bidirectional:
            raise ValueError("a bidirectional model sees what it is to fill in; it cannot write")


@dataclass(frozen=True)
class ReviewsConfig(TrainConfig):
    """A classifier of texts with a label.

    Attributes:
        vocabulary_size: the most frequent words that have an id, special ones included.
        length: the most words of a review.
        keep: which words of a longer one: its "last" or its "first".
        vectors: a text file of word vectors (GloVe's format) to use, frozen; None trains them.
        train_vectors: the vectors of that file are what training begins with, not frozen.
        widths: how many lengths batches may be padded to; reviews of like length share a batch.
        model: the network.
    """

    heldout_share: float = 0.2
    sample_every: int = 0
    vocabulary_size: int = 10_000
    length: int = 80
    keep: Literal["last", "first"] = "last"
    vectors: str | None = None
    train_vectors: bool = False
    widths: int = 1
    model: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "length", "widths")
        _require_positive(self, "vocabulary_size")
        if self.train_vectors and self.vectors is None:
            raise ValueError("train_vectors needs vectors to begin with; name their file")
        if self.vocabulary_size < 5:
            raise ValueError(
                f"vocabulary_size is {self.vocabulary_size}; it must be at least 5, four special "
                "words and one other"
            )


_LARGEST_INTEGER = 2**31 - 1
_LARGEST_FLOAT = 1e30
_LONGEST_SAMPLE = 10_000_000
_LARGEST_EXACT = 2**53
"""Integers up to it are floats as well."""

AnyConfig = LanguageConfig | PoemsConfig | ReviewsConfig

_SYSTEMS: dict[str, type[AnyConfig]] = {
    "language": LanguageConfig,
    "poems": PoemsConfig,
    "reviews": ReviewsConfig,
}


def to_dict(config: AnyConfig) -> dict[str, Any]:
    """The config as JSON values."""
    (system,) = (name for name, cls in _SYSTEMS.items() if type(config) is cls)
    return {"system": system, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> AnyConfig:
    """The config that `to_dict` gave; fields it lacks, of an older version, take their defaults.

    Raises:
        ValueError: a field that this version doesn't know, or a value that makes no sense.
    """
    values = dict(values)
    system = values.pop("system", None)
    if not isinstance(system, str) or system not in _SYSTEMS:
        raise ValueError(f"its system is {system!r}; expected one of {', '.join(_SYSTEMS)}")
    config: AnyConfig = _build(_SYSTEMS[system], values, "")
    return config


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} is {values!r}; expected a JSON object")
    known = {f.name: f for f in dataclasses.fields(cls)}
    kinds = get_type_hints(cls)
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"unknown field {prefix + name!r}; was this written by a newer version?"
            )
        nested: Any = known[name].default_factory
        if isinstance(nested, type):
            built[name] = _build(nested, value, f"{prefix}{name}.")
            continue
        built[name] = tuple(value) if isinstance(value, list) else value
        if not _is_of(built[name], kinds[name]):
            raise ValueError(f"{prefix + name} is {value!r:.60}; expected {_shown(kinds[name])}")
    return cls(**built)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file is of the type that a field is annotated with."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is types.UnionType:
        return any(_is_of(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    if kind is float and type(value) is int:
        return abs(value) <= _LARGEST_EXACT
    return type(value) is kind  # True is an int, but no number


def _shown(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return str(kind.__name__ if isinstance(kind, type) else kind)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be above 0")
        _refuse_too_large(name, value)


def _require_no_less_than_0(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be 0 or above")
        _refuse_too_large(name, value)


def _refuse_too_large(name: str, value: float | None) -> None:
    """Numbers travel to the device as int32 and float32."""
    largest = _LARGEST_INTEGER if isinstance(value, int) else _LARGEST_FLOAT
    if value is not None and value > largest:
        raise ValueError(f"{name} is {value}; it must be at most {largest}")


def _require_share(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")

"""What systems have in common: settings, what is learnt, and what training needs of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from jax import Array
from jax.sharding import Mesh

from lstm_jax.losses import TokenSums
from lstm_jax.settings import (
    Bounds,
    Changeable,
    Checked,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Share,
)
from lstm_jax.sharding import data_mesh, put_batch
from lstm_jax.text import LengthBatches, Vocabulary

AnyArray = Array | npt.NDArray[Any]
OutputBias = Literal["drawn", "frequencies"]
ShardState = Literal["none", "moments", "all"]


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Adam with clipping by global norm, and a learning-rate schedule."""

    learning_rate: Positive = 1e-3  # the highest rate of the schedule.
    #: "constant"; "cosine" down to `final_share` over the run (a run that goes on for more steps
    #: takes the rate up to where a cosine of all of them is); "step": times `decay_rate` after
    #: every `decay_steps`; "exponential": the same, smoothly.
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    warmup_steps: CountOrZero = 0  # steps of linear rise from 0 before the schedule begins.
    #: interval of "step" and "exponential"; length of "cosine", by default the run's.
    decay_steps: Count | None = None
    #: factor of "step" and "exponential", 0 < rate <= 1.
    decay_rate: Annotated[float, Bounds(above=0, most=1)] = 0.5
    #: what "cosine" ends at, as a share of `learning_rate`.
    final_share: Annotated[float, Bounds(0, most=1)] = 0.0
    #: gradients with a larger global norm are scaled down to it; None never clips.
    clip_norm: Positive | None = 5.0
    beta1: Share = 0.9  # decay of Adam's mean of gradients.
    beta2: Share = 0.999  # decay of Adam's mean of squared gradients.
    epsilon: Positive = 1e-8  # added to Adam's denominator.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule in ("step", "exponential") and self.decay_steps is None:
            raise ValueError(f"schedule {self.schedule!r} needs decay_steps, its interval in steps")


@dataclass(frozen=True)
class SampleConfig(Checked):
    """How samples are drawn in training."""

    length: Annotated[int, Bounds(1, 10_000_000)] = 200  # tokens of a sample.
    top_n: CountOrZero = 0  # takes only the most likely n tokens; 0 for all.
    temperature: PositiveOrZero = 1.0  # divides the logits; 0 takes the most likely token.
    #: whether the unknown token is "never" taken, or "ends" a sample.
    unknown: Literal["never", "ends"] = "never"


@dataclass(frozen=True)
class TrainConfig(Checked):
    """What every run has, whatever it learns."""

    preset: str = "custom"  # the system that these settings began as.
    data: Changeable[str | None] = None  # what to train on; None takes the preset's own corpus.
    #: the folder of a run whose weights and vocabulary this one begins with; its settings are the
    #: defaults. A character that it doesn't know is refused, a word unknown.
    init_from: str | None = None
    heldout_share: Share = 0.1  # share of the data that is held out of training.
    batch_size: Count = 32  # sequences side by side.
    epochs: Changeable[Count] = 10  # passes over the data.
    #: optimizer steps in all; None for as many as the epochs have.
    steps: Changeable[Count | None] = None
    #: of initial weights, dropout, order and samples.
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    #: how many devices share each batch; "auto" lets the command choose.
    devices: Changeable[Count | Literal["auto"]] = "auto"
    #: of what each device keeps a part alone, and not the whole: of "none" of the state; of
    #: Adam's "moments", two thirds of it; of "all", parameters as well, which then go round before
    #: each step. It saves memory, and the losses stay what they are.
    shard_state: Changeable[ShardState] = "none"
    #: how many devices side by side split a vocabulary among them, the embedding and the output
    #: layer: for one that is too large for a device. It divides `devices`.
    tensor: Changeable[Count] = 1
    intervals: Changeable[Literal["steps", "epochs"]] = "steps"  # what the intervals below count.
    log_every: Changeable[Count] = 10  # from one row of metrics to the next.
    #: from one held-out evaluation to the next; 0 only at the end.
    evaluate_every: Changeable[CountOrZero] = 500
    #: from one checkpoint to the next; 0 only at the end.
    checkpoint_every: Changeable[CountOrZero] = 500
    sample_every: Changeable[CountOrZero] = 500  # from one sample to the next; 0 for none.
    #: how many of the latest checkpoints are kept, besides the best.
    keep_checkpoints: Changeable[Count] = 3
    #: training ends after so many evaluations in a row without a better held-out loss; 0 for never.
    patience: Changeable[CountOrZero] = 0
    #: training gives up after so many steps in a row whose loss or gradient is not finite, from
    #: which nothing is learnt; 0 for never.
    skipped_at_most: Changeable[CountOrZero] = 20
    #: how it learns.
    optimizer: Changeable[OptimizerConfig] = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and not self.heldout_share:
            raise ValueError("patience needs something held out; set heldout_share above 0")

    @property
    def device_count(self) -> int:
        """Devices that share each batch: one, where none has been chosen."""
        return 1 if self.devices == "auto" else self.devices

    @property
    def mesh(self) -> Mesh:
        """Of these devices."""
        return data_mesh(self.device_count, self.batch_size, self.tensor)

    def steps_of(self, interval: int, batches: int) -> int:
        """An interval in steps, of which an epoch has `batches`."""
        return interval * (batches if self.intervals == "epochs" else 1)


class Predictions(NamedTuple):
    """A batch: `inputs` and `targets`, int32 `[T, B]`; `mask`, bool `[T, B]`, or None."""

    inputs: AnyArray
    targets: AnyArray
    mask: AnyArray | None


class BatchSums(NamedTuple):
    """What a batch adds up to."""

    #: sums by what they are of; the name is a prefix of the metrics' names, "" for the chief part.
    #: What is learnt is the sum of all losses over the sum of all weights.
    parts: dict[str, TokenSums]
    tokens: Array  # real tokens read


class Objective(Protocol):
    """What is to be learnt, as pure functions; a hashable value, as steps are compiled for it."""

    def init(self, key: Array) -> Any:
        """Draws the parameters with a typed key."""

    def zero_carry(self, params: Any, batch_size: int) -> Any:
        """What goes from batch to batch, at an epoch's start; nothing, by default."""
        return ()

    def sums(
        self, params: Any, carry: Any, data: Any, index: Array, dropout_key: Array | None
    ) -> tuple[BatchSums, Any]:
        """The sums of the batch that is in `data`, which the system's feed gives; and the carry.

        `index` is the batch's place in its epoch; `dropout_key` is one for each sequence, `[B]`,
        and None outside training.
        """


class System:
    """A run's settings and data: what training needs to know of a system.

    A subclass is a frozen dataclass. Besides what raises NotImplementedError here it has only what
    differs from these defaults.
    """

    name: ClassVar[str]  # of the system, in the config of its runs
    Config: ClassVar[type[TrainConfig]]  # the class of its settings
    Model: ClassVar[type[Any]]  # of the network; see `model_of`
    presets: ClassVar[tuple[TrainConfig, ...]]  # settings by name.
    #: by a preset's name, the system that it follows with every setting and flaw
    published: ClassVar[Mapping[str, TrainConfig]] = {}
    has_perplexity: ClassVar[bool] = True  # whether the loss is one of a prediction of tokens.
    #: which checkpoint a run is judged and used at, unless another is asked for
    used_step: ClassVar[Literal["newest", "best"]] = "newest"
    #: how its trained models are used, a command that the run folder follows
    use: ClassVar[str] = "let it write: python sample.py"

    config: Any  # the run's settings
    vocabulary: Vocabulary  # tokens
    sha256: str  # of the data: another value is other data

    @classmethod
    def read(cls, config: Any, kept: Path | None, vocabulary: Vocabulary | None) -> Self:
        """Reads a run's data; raises ValueError, with the cure, where it can't be used.

        `kept` is the folder of a run that goes on, which has `files`; None for a new one. A
        `vocabulary` takes the place of the data's own.
        """
        raise NotImplementedError

    @classmethod
    def model_of(cls, config: Any, tokens: int) -> Any:
        """The network, for a vocabulary of so many tokens."""
        return cls.Model(config.model, tokens)

    @property
    def model(self) -> Any:
        """The network."""
        return self.model_of(self.config, len(self.vocabulary))

    @property
    def objective(self) -> Objective:
        """What is learnt; by default the network has the methods."""
        objective: Objective = self.model
        return objective

    @property
    def frozen(self) -> tuple[str, ...]:
        """Fields of the parameters that training leaves as they are."""
        return ()

    @property
    def batches(self) -> int:
        """Batches of one epoch."""
        raise NotImplementedError

    @property
    def heldout_batch_size(self) -> int:
        """Sequences side by side in held-out batches; 0 if nothing is held out."""
        return self.config.batch_size if self.config.heldout_share else 0

    def summary(self) -> str:
        """What the data is, in a line or a few."""
        return f"{len(self.vocabulary):,} tokens in the vocabulary"

    def feed(self) -> Callable[[int], Any]:
        """A function from the step's number to the data that its batch is in, on the devices.

        The data is a named tuple; see `lstm_jax.sharding.axes_of` for how devices share it.
        """
        raise NotImplementedError

    def heldout(self) -> Iterator[Any]:
        """Batches that hold every held-out token once."""
        raise NotImplementedError

    def test_batches(self) -> Iterator[Any]:
        """Batches of the data's own test part; none where it has none."""
        return iter(())

    def first_params(self, params: Any) -> Any:
        """The parameters that training starts from, given those that were drawn."""
        return params

    def files(self) -> dict[str, bytes]:
        """What the run folder keeps of the data, by file name."""
        return {}

    def with_samples(self, *, replace: bool) -> Self:
        """The system, once its prompts or templates are known to be of use.

        With `replace`, those with something that the data lacks are left out, or give way to
        something of the data's own; else raises ValueError where there is one.
        """
        return self

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        """What the model writes: (prompt, text); the same at a step however it was reached."""
        return iter(())


class SequencesSystem(System):
    """A system of sequences that stand alone; those of like length share a batch."""

    training: Any  # those that are trained on
    held_out: Any  # the others, by which the best checkpoint is chosen

    def lengths(self, sequences: Any) -> list[int]:
        """The time that each of the sequences takes."""
        raise NotImplementedError

    def batch_of(self, sequences: Any, rows: npt.NDArray[np.int64], width: int) -> Any:
        """A batch of so many times, of these rows of the sequences."""
        raise NotImplementedError

    @property
    def batches(self) -> int:
        """Of one epoch."""
        return self._order(self.training).batches

    def feed(self) -> Callable[[int], Any]:
        """As in `System`."""
        order, mesh = self._order(self.training), self.config.mesh

        def data(step: int) -> Any:
            return put_batch(mesh, self.batch_of(self.training, *order.batch(step)))

        return data

    def heldout(self) -> Iterator[Any]:
        """As in `System`."""
        return self.batches_of(self.held_out)

    def batches_of(self, sequences: Any) -> Iterator[Any]:
        """Batches that hold each of the sequences once."""
        for rows, width in self._order(sequences).in_order():
            yield self.batch_of(sequences, rows, width)

    def _order(self, sequences: Any) -> LengthBatches:
        lengths, config = np.array(self.lengths(sequences), np.int64), self.config
        return LengthBatches(lengths, config.batch_size, config.widths, config.seed)


def known_characters(
    vocabulary: Vocabulary | None, text: str, config: TrainConfig
) -> Vocabulary | None:
    """The vocabulary of the run that this one begins with, if it does.

    Raises ValueError where it lacks a character of the text.
    """
    try:
        if vocabulary is not None:
            vocabulary.encode(text)
    except ValueError as error:
        raise ValueError(
            f"cannot begin with the vocabulary of {config.init_from}: {error}; or leave --init-from"
        ) from None
    return vocabulary

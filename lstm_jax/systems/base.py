"""What all systems share: settings, and the interface between a system and training."""

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
    """Adam or SGD with clipping by global norm, a learning-rate schedule, averaged weights."""

    method: Literal["adam", "sgd"] = "adam"  # the optimizer.
    learning_rate: Positive = 1e-3  # highest rate of the schedule.
    #: "constant"; "cosine" decay to `final_share` over the run (a resumed, longer run follows the
    #: cosine of its full length); "step": multiply by `decay_rate` every `decay_steps`;
    #: "exponential": the same, continuously.
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    warmup_steps: CountOrZero = 0  # steps of linear warm-up from 0 before the schedule begins.
    #: interval of "step" and "exponential"; length of "cosine", by default that of the run.
    decay_steps: Count | None = None
    #: factor of "step" and "exponential", 0 < rate <= 1.
    decay_rate: Annotated[float, Bounds(above=0, most=1)] = 0.5
    #: final rate of "cosine", as a share of `learning_rate`.
    final_share: Annotated[float, Bounds(0, most=1)] = 0.0
    #: global norm to which larger gradients are scaled down; None never clips.
    clip_norm: Positive | None = 5.0
    #: decoupled weight decay: each update also subtracts this times the learning rate times the
    #: weight.
    weight_decay: PositiveOrZero = 0.0
    #: average the weights from the first held-out loss on that is above the lowest of those before
    #: the last so many; evaluation, samples and the loaded model use the average (with SGD this is
    #: NT-ASGD, Merity et al., 2018, where it is 5). 0 never averages.
    average_after: CountOrZero = 0
    beta1: Share = 0.9  # decay rate of Adam's mean of gradients.
    beta2: Share = 0.999  # decay rate of Adam's mean of squared gradients.
    epsilon: Positive = 1e-8  # added to Adam's denominator.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule in ("step", "exponential") and self.decay_steps is None:
            raise ValueError(f"schedule {self.schedule!r} needs decay_steps, its interval in steps")


@dataclass(frozen=True)
class SampleConfig(Checked):
    """How samples are drawn during training."""

    length: Annotated[int, Bounds(1, 10_000_000)] = 200  # tokens of a sample.
    top_n: CountOrZero = 0  # sample from the n most likely tokens only; 0 for all.
    temperature: PositiveOrZero = 1.0  # divides the logits; 0 takes the most likely token.
    #: whether the unknown token is "never" taken, or "ends" a sample.
    unknown: Literal["never", "ends"] = "never"


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Settings common to all runs."""

    preset: str = "custom"  # name of the system that these settings are based on.
    data: Changeable[str | None] = None  # what to train on; None takes the preset's own corpus.
    #: folder of a run from which to take initial weights, vocabulary and default settings. Unknown
    #: characters are refused; unknown words become the unknown token.
    init_from: str | None = None
    heldout_share: Share = 0.1  # share of the data held out from training.
    batch_size: Count = 32  # number of sequences per batch.
    epochs: Changeable[Count] = 10  # passes over the data.
    #: total number of optimizer steps; None derives it from `epochs`.
    steps: Changeable[Count | None] = None
    #: random seed of initial weights, dropout, data order and samples.
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    #: number of devices that share each batch; "auto" lets the command choose.
    devices: Changeable[Count | Literal["auto"]] = "auto"
    #: state that is split among the devices instead of replicated: "none"; Adam's "moments", two
    #: thirds of the state; or "all", which includes the parameters and gathers them before each
    #: step. Saves memory without changing the losses.
    shard_state: Changeable[ShardState] = "none"
    #: number of neighbouring devices that split the vocabulary (embedding and output layer), if it
    #: is too large for one device. It must divide `devices`.
    tensor: Changeable[Count] = 1
    intervals: Changeable[Literal["steps", "epochs"]] = "steps"  # unit of the intervals below.
    log_every: Changeable[Count] = 10  # interval between rows of metrics.
    #: interval between held-out evaluations; 0 only evaluates at the end.
    evaluate_every: Changeable[CountOrZero] = 500
    #: interval between checkpoints; 0 only saves at the end.
    checkpoint_every: Changeable[CountOrZero] = 500
    sample_every: Changeable[CountOrZero] = 500  # interval between samples; 0 for none.
    #: number of latest checkpoints to keep, in addition to the best.
    keep_checkpoints: Changeable[Count] = 3
    #: stop after this many evaluations in a row without a better held-out loss; 0 for never.
    patience: Changeable[CountOrZero] = 0
    #: give up after this many steps in a row skipped for a non-finite loss or gradient; 0 for
    #: never.
    skipped_at_most: Changeable[CountOrZero] = 20
    #: share of each recurrent matrix `w_h` set to zero, drawn anew each step. A preset's is 0 if
    #: the cell has no such matrix.
    weight_drop: Changeable[Share] = 0.0
    #: settings of the optimizer.
    optimizer: Changeable[OptimizerConfig] = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience and not self.heldout_share:
            raise ValueError("patience needs something held out; set heldout_share above 0")
        if self.optimizer.average_after and not (self.heldout_share and self.evaluate_every):
            raise ValueError(
                "optimizer.average_after needs held-out losses; set heldout_share and "
                "evaluate_every above 0"
            )

    @property
    def device_count(self) -> int:
        """Number of devices that share each batch; one if none has been chosen."""
        return 1 if self.devices == "auto" else self.devices

    @property
    def mesh(self) -> Mesh:
        """The mesh of these devices."""
        return data_mesh(self.device_count, self.batch_size, self.tensor)

    def steps_of(self, interval: int, batches: int) -> int:
        """Convert an interval to steps, with `batches` per epoch."""
        return interval * (batches if self.intervals == "epochs" else 1)


class Predictions(NamedTuple):
    """A batch: `inputs` and `targets`, int32 `[T, B]`; `mask`, bool `[T, B]`, or None."""

    inputs: AnyArray
    targets: AnyArray
    mask: AnyArray | None


class BatchSums(NamedTuple):
    """Sums over a batch."""

    #: sums by part; each key is the prefix of the part's metrics, "" for the main part. The
    #: training loss is the sum of all losses over the sum of all weights.
    parts: dict[str, TokenSums]
    tokens: Array  # number of real tokens read


class Objective(Protocol):
    """The training objective, as pure functions; hashable, as steps are compiled for it."""

    def init(self, key: Array) -> Any:
        """Draw the parameters from a typed key."""

    def zero_carry(self, params: Any, batch_size: int) -> Any:
        """The carry between batches at the start of an epoch; empty by default."""
        return ()

    def sums(
        self, params: Any, carry: Any, data: Any, index: Array, dropout_key: Array | None
    ) -> tuple[BatchSums, Any]:
        """Sums of the batch within `data`, from the system's `feed`, and the new carry.

        `index` is the batch's index in its epoch; `dropout_key`, `[B]`, is None outside training.
        """


class System:
    """A run's settings and data: the interface between a system and training.

    A subclass is a frozen dataclass that overrides at least what raises NotImplementedError.
    """

    name: ClassVar[str]  # name of the system in its runs' configs
    Config: ClassVar[type[TrainConfig]]  # class of its settings
    Model: ClassVar[type[Any]]  # class of its network; see `model_of`
    presets: ClassVar[tuple[TrainConfig, ...]]  # named settings
    #: by preset name, the published system that it follows, with all its settings and flaws
    published: ClassVar[Mapping[str, TrainConfig]] = {}
    has_perplexity: ClassVar[bool] = True  # whether the loss predicts tokens
    #: checkpoint that evaluation and sampling use by default
    used_step: ClassVar[Literal["newest", "best"]] = "newest"
    #: how to use a trained model: a command, to which the run folder is appended
    use: ClassVar[str] = "generate text with it: python sample.py"

    config: Any  # the run's settings
    vocabulary: Vocabulary
    sha256: str  # hash of the data

    @classmethod
    def read(cls, config: Any, kept: Path | None, vocabulary: Vocabulary | None) -> Self:
        """Read a run's data; raises ValueError, with the cure, if it is unusable.

        `kept` is the folder of a resumed run, which has `files`; None for a new one. A `vocabulary`
        replaces the data's own.
        """
        raise NotImplementedError

    @classmethod
    def model_of(cls, config: Any, tokens: int) -> Any:
        """The network for a vocabulary of `tokens` tokens."""
        return cls.Model(config.model, tokens)

    @property
    def model(self) -> Any:
        """The network."""
        return self.model_of(self.config, len(self.vocabulary))

    @property
    def objective(self) -> Objective:
        """The training objective; by default the network itself."""
        return self.model

    @property
    def frozen(self) -> tuple[str, ...]:
        """Fields of the parameters that training does not change."""
        return ()

    @property
    def batches(self) -> int:
        """Number of batches per epoch."""
        raise NotImplementedError

    @property
    def heldout_batch_size(self) -> int:
        """Number of sequences in a held-out batch; 0 if nothing is held out."""
        return self.config.batch_size if self.config.heldout_share else 0

    def summary(self) -> str:
        """Describe the data in one line or a few."""
        return f"{len(self.vocabulary):,} tokens in the vocabulary"

    def feed(self) -> Callable[[int], Any]:
        """Return a function from step number to the data, on the devices, that contains its batch.

        The data is a named tuple; `lstm_jax.sharding.axes_of` says how devices share it.
        """
        raise NotImplementedError

    def heldout(self) -> Iterator[Any]:
        """Yield batches that contain every held-out token once."""
        raise NotImplementedError

    def test_batches(self) -> Iterator[Any]:
        """Yield batches of the data's own test part, if it has one."""
        return iter(())

    def first_params(self, params: Any) -> Any:
        """Adjust the drawn parameters before training starts."""
        return params

    def files(self) -> dict[str, bytes]:
        """Files to keep in the run folder, by name."""
        return {}

    def with_samples(self, *, replace: bool) -> Self:
        """Check that the prompts or templates of samples are usable.

        With `replace`, unusable ones are dropped or replaced from the data; else raises ValueError.
        """
        return self

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        """Yield pairs of prompt and generated text; they depend only on parameters and step."""
        return iter(())


class SequencesSystem(System):
    """A system of independent sequences; those of similar length share a batch."""

    training: Any  # sequences to train on
    held_out: Any  # the others, which select the best checkpoint

    def lengths(self, sequences: Any) -> list[int]:
        """Number of time steps of each sequence."""
        raise NotImplementedError

    def batch_of(self, sequences: Any, rows: npt.NDArray[np.int64], width: int) -> Any:
        """Make a batch of these rows of the sequences, padded to `width` time steps."""
        raise NotImplementedError

    @property
    def batches(self) -> int:
        """Number of batches per epoch."""
        return self._order(self.training).batches

    def feed(self) -> Callable[[int], Any]:
        """See `System.feed`."""
        order, mesh = self._order(self.training), self.config.mesh
        return lambda step: put_batch(mesh, self.batch_of(self.training, *order.batch(step)))

    def heldout(self) -> Iterator[Any]:
        """See `System.heldout`."""
        return self.batches_of(self.held_out)

    def batches_of(self, sequences: Any) -> Iterator[Any]:
        """Yield batches that contain each sequence once."""
        for rows, width in self._order(sequences).in_order():
            yield self.batch_of(sequences, rows, width)

    def _order(self, sequences: Any) -> LengthBatches:
        lengths, config = np.array(self.lengths(sequences), np.int64), self.config
        return LengthBatches(lengths, config.batch_size, config.widths, config.seed)


def known_characters(
    vocabulary: Vocabulary | None, text: str, config: TrainConfig
) -> Vocabulary | None:
    """The vocabulary of the run that this one is initialised from, if any.

    Raises ValueError if it lacks a character of the text.
    """
    try:
        if vocabulary is not None:
            vocabulary.encode(text)
    except ValueError as error:
        raise ValueError(
            f"cannot begin with the vocabulary of {config.init_from}: {error}; or leave --init-from"
        ) from None
    return vocabulary

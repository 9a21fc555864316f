"""What a run is made of: frozen dataclasses, each default written once.

The command line is generated from these; the attributes' descriptions are its help texts.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lstm_jax.models import LanguageModelConfig

ScheduleName = Literal["constant", "cosine", "step", "exponential"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with clipping by global norm, and a learning-rate schedule.

    Attributes:
        learning_rate: the highest rate of the schedule.
        schedule: "constant"; "cosine" down to `final_share` over the run; "step": times
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
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or above")


@dataclass(frozen=True)
class TrainConfig:
    """A language model trained on one text.

    Attributes:
        preset: the system that these settings began as.
        data: the text file to train on, UTF-8; None takes the preset's own corpus.
        tokens: what a token is: a character, or a word.
        min_count: words that occur less often are unknown (words only).
        heldout_share: share of the text that is held out of training.
        heldout_from: which share: the text's "end"; or the end of each of the batch's "lanes", as
            some published notebooks have it, so that it comes from all over the text.
        batch_size: sequences side by side.
        sequence_length: steps of truncated backpropagation through time.
        epochs: passes over the text; the carry is zeroed where each begins.
        steps: optimizer steps in all; None for as many as the epochs have.
        seed: of initial weights, dropout and samples.
        devices: local devices that share each batch.
        log_every: steps from one row of metrics to the next.
        evaluate_every: steps from one held-out evaluation to the next; 0 only at the end.
        checkpoint_every: steps from one checkpoint to the next; 0 only at the end.
        keep_checkpoints: how many of the latest checkpoints are kept, besides the best.
        sample_every: steps from one sample to the next; 0 for none.
        sample_prompts: the prompts that samples go on from.
        sample_length: tokens of a sample.
        sample_top_n: samples take only the most likely n tokens; 0 for all.
        sample_temperature: divides a sample's logits; 0 takes the most likely token.
        corpus_on_device_mb: a text that takes more than this is fed to the device piece by piece.
        model: the network.
        optimizer: how it learns.
    """

    preset: str = "custom"
    data: str | None = None
    tokens: Literal["char", "word"] = "char"
    min_count: int = 1
    heldout_share: float = 0.1
    heldout_from: Literal["end", "lanes"] = "end"
    batch_size: int = 32
    sequence_length: int = 64
    epochs: int = 10
    steps: int | None = None
    seed: int = 0
    devices: int = 1
    log_every: int = 10
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    sample_every: int = 500
    sample_prompts: tuple[str, ...] = ("The ",)
    sample_length: int = 200
    sample_top_n: int = 0
    sample_temperature: float = 1.0
    corpus_on_device_mb: int = 1024
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "min_count",
            "batch_size",
            "sequence_length",
            "epochs",
            "steps",
            "devices",
            "log_every",
            "keep_checkpoints",
            "sample_length",
        )
        for name in (
            "evaluate_every",
            "checkpoint_every",
            "sample_every",
            "sample_top_n",
            "sample_temperature",
            "corpus_on_device_mb",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be 0 or above")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")
        _require_share(self, "heldout_share")
        if not self.sample_prompts or not all(self.sample_prompts):
            raise ValueError("sample_prompts holds an empty prompt; give at least one character")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The config that `to_dict` gave; fields it lacks, of an older version, take their defaults.

    Raises:
        ValueError: a field that this version doesn't know, or a value that makes no sense.
    """
    values = dict(values)
    model = _build(LanguageModelConfig, values.pop("model", {}), "model.")
    optimizer = _build(OptimizerConfig, values.pop("optimizer", {}), "optimizer.")
    if isinstance(values.get("sample_prompts"), list):
        values["sample_prompts"] = tuple(values["sample_prompts"])
    return _build(  # type: ignore[no-any-return]
        TrainConfig, values | {"model": model, "optimizer": optimizer}, ""
    )


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} is {values!r}; expected a JSON object")
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(
                f"unknown field {prefix + name!r}; was this written by a newer version?"
            )
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"a field of {cls.__name__} has the wrong type: {error}") from None


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be above 0")


def _require_share(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")

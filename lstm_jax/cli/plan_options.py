"""What `plan` can be given: a preset, its flags over the preset's settings, and a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro

from lstm_jax.cli.arguments import parse
from lstm_jax.settings import Count, Positive, check
from lstm_jax.systems import preset_named, presets
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.reviews import ReviewsConfig

HELP = """\
usage: {prog} [PRESET] --vocabulary-size N [--FLAG VALUE] ...

Prints what a model takes on a mesh of devices: parameters, memory, traffic, time. It reads no data
and touches no accelerator. Besides its own flags it takes all that train takes for the preset.

common flags:
  --vocabulary-size N     tokens of the vocabulary
  --devices N             devices in all, which share each batch
  --tensor N              how many of them share the vocabulary's arrays, and each row's logits
  --shard-state S         what else they share: none, moments (Adam's), or all (parameters too)
  --batch-size N          sequences side by side, on all devices together
  --sequence-length N     tokens of each
  --layers N              stacked layers
  --hidden-size N         units of each layer
  --embedding-size N      numbers that a token is looked up as
  --projection-size N     of an LSTM's hidden states
  --device-tflops X       what a device computes, in 10^12 operations a second; by default 400
  --link-gigabytes X      what a device sends a second inside its node; by default 400
  --network-gigabytes X   and to other nodes; by default 50
  --node-devices N        devices of a node; by default 8
  --json                  print a JSON object

{prog} PRESET --help-all prints all flags with the preset's values."""

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class PlanOptions:
    """How fast a mesh is.

    Attributes:
        device_tflops: 10^12 multiplications and additions a second, of a device.
        link_gigabytes: 10^9 bytes a second that a device sends inside its node.
        network_gigabytes: and to devices of other nodes.
        node_devices: devices of a node.
    """

    device_tflops: Positive = 400.0
    link_gigabytes: Positive = 400.0
    network_gigabytes: Positive = 50.0
    node_devices: Count = 8

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TextPlanOptions(PlanOptions):
    """The same for a model of text, whose tokens training would count.

    Attributes:
        vocabulary_size: how many tokens there are; this has no default.
    """

    vocabulary_size: Count | None = None


Own = TypeVar("Own", bound=PlanOptions)


@dataclass(frozen=True)
class PlanCommand(Generic[C, Own]):
    """Say what a model takes on a mesh of devices: parameters, memory, traffic, time.

    Attributes:
        config: the run's settings, as train takes them.
        own: what only this command needs to know.
        preset: docs (the default), anna, shakespeare, poems, reviews or lyrics.
        json: print a JSON object: bytes, operations, milliseconds.
    """

    config: Annotated[C, tyro.conf.arg(name="")]
    own: Annotated[Own, tyro.conf.arg(name="")]
    preset: Annotated[str, tyro.conf.Positional] = "docs"
    json: bool = False

    @property
    def tokens(self) -> int:
        """Of the vocabulary; a classifier's are a setting of its own."""
        settings = self.own if isinstance(self.own, TextPlanOptions) else self.config
        tokens: int | None = settings.vocabulary_size  # type: ignore[union-attr]
        if tokens is None:
            raise ValueError(
                "the number of tokens is unknown, as no data is read; give --vocabulary-size N"
            )
        return tokens


def read_arguments(arguments: Sequence[str], prog: str) -> PlanCommand[Any, Any]:
    """Reads the flags over the defaults of the preset that the first word names."""
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    default = preset_named(named or presets()[0].preset)
    own = PlanOptions() if isinstance(default, ReviewsConfig) else TextPlanOptions()
    kind: Any = PlanCommand[type(default), type(own)]  # type: ignore[misc]
    return parse(kind, PlanCommand(default, own, default.preset), arguments, prog, HELP)

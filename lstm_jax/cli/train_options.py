"""Options of `train`: the settings of a preset or run, and what to do with them."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from lstm_jax.cells import cell_named
from lstm_jax.cli.arguments import HELP_ALL, given, parse
from lstm_jax.cli.console import importing
from lstm_jax.cli.processes import Launch
from lstm_jax.stack import StackConfig
from lstm_jax.systems import preset_named, presets
from lstm_jax.systems.base import TrainConfig

HELP = """\
usage: {prog} [PRESET] [--FLAG VALUE] ...

Trains a model, shows its losses and samples, and saves it in a run folder.

presets:
  docs         Python's own documentation, by characters; the default
  anna         a novel, by characters
  shakespeare  plays, by words
  wordlm       any text of words, with strong regularisation
  lyrics       10,000 characters to memorise; --data names a text
  poems        short poems that fill in acrostics; --data names a file of them
  reviews      sentiment classifier of film reviews

common flags:
  --data PATH        data to train on, instead of the preset's own
  --run-dir DIR      folder of the run; by default runs/PRESET
  --epochs N         passes over the data
  --steps N          total number of optimizer steps, instead of epochs
  --batch-size N     number of sequences per batch
  --layers N         number of stacked layers
  --hidden-size N    units of each layer
  --learning-rate X  highest learning rate of the schedule
  --resume           continue from the newest checkpoint in the run folder
  --eval-only        only print the run's held-out loss

{prog} PRESET --help-all prints all flags with the preset's values."""

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class TrainCommand(Generic[C]):
    """Train a system, show its progress, and save it in a run folder."""

    config: Annotated[C, tyro.conf.arg(name="")]  # the run's settings.
    #: rank of this process among several.
    launch: Annotated[Launch, tyro.conf.arg(name="")] = field(default_factory=Launch)
    #: docs (the default), anna, shakespeare, wordlm, poems, reviews or lyrics; see --help.
    preset: Annotated[str, tyro.conf.Positional] = "docs"
    #: reproduce the published system that the preset follows, with all its settings and flaws.
    as_published: bool = False
    run_dir: Path = Path("runs/docs")  # folder of the run; by default runs/PRESET.
    #: continue from the newest checkpoint of the run folder, with its settings.
    resume: bool = False
    #: only print the held-out loss of the run folder's newest checkpoint, or a classifier's best.
    eval_only: bool = False
    profile: Path | None = None  # write a JAX trace of a few steps into this folder.
    #: also write metrics and samples for TensorBoard, into RUN_DIR/tensorboard.
    tensorboard: bool = False
    #: also log them to Weights & Biases; WANDB_MODE=offline keeps them in RUN_DIR/wandb.
    wandb: bool = False
    #: whether the user chose the prompts of samples; others are replaced by the beginning of the
    #: text if it lacks their characters or words.
    own_samples: tyro.conf.Suppress[bool] = False
    #: whether the user chose the number of devices; a resumed run otherwise takes what there is.
    own_devices: tyro.conf.Suppress[bool] = False


def named_preset(arguments: Sequence[str]) -> tuple[str | None, TrainConfig]:
    """The preset's name as given, if any, and its settings, as published if the line says so."""
    named = given("--preset", arguments)
    if arguments and not arguments[0].startswith("-"):
        named = arguments[0]
    as_published = given("--as-published", arguments) is not None
    return named, preset_named(named or presets()[0].preset, as_published=as_published)


def read_arguments(arguments: Sequence[str], prog: str = "train.py") -> TrainCommand[TrainConfig]:
    """Parse the flags over their defaults: those of a preset, or of the run to resume.

    tyro needs defaults before it parses the line, but a run's are in a folder that the line names.
    So the arguments that select the defaults are looked up first.
    """
    for flag in ("--data", "--run-dir"):
        if given(flag, arguments) == "" and arguments[-1] != flag:
            raise ValueError(f"{flag} is empty; name a path, or leave it out")
    named, default = named_preset(arguments)
    other = given("--init-from", arguments)
    if any(given(flag, arguments) is not None for flag in ("--resume", "--eval-only")):
        other = given("--run-dir", arguments) or f"runs/{default.preset}"
    if other is not None and {"-h", "--help", HELP_ALL}.isdisjoint(arguments):
        with importing():
            from lstm_jax.training.run import RunFolder, read_description

        default = read_description(RunFolder(Path(other))).config
        if named and default.preset != named:
            raise ValueError(f"{other} is a run of preset {default.preset!r}, not {named!r}")
    with_flags_of: Any = TrainCommand[type(default)]  # type: ignore[misc]
    unchanged = TrainCommand(default, preset=default.preset, run_dir=Path("runs") / default.preset)
    command: TrainCommand[TrainConfig] = parse(with_flags_of, unchanged, arguments, prog, HELP)
    config = command.config
    for name in (command.preset, config.preset):
        if name != default.preset:
            raise ValueError(f"the preset comes first: {prog} {name} ...; see {prog} --help")
    if given("--epochs", arguments) is not None and given("--steps", arguments) is None:
        config = dataclasses.replace(config, steps=None)
    if config.init_from is not None:
        config = dataclasses.replace(config, init_from=os.path.abspath(config.init_from))
    model: Any = getattr(config, "model", None)
    no_matrix = isinstance(model, StackConfig) and cell_named(model.cell).unit_step is not None
    if no_matrix and given("--weight-drop", arguments) is None:
        config = dataclasses.replace(config, weight_drop=0.0)
    prompts, *known = (getattr(each, "sample_prompts", None) for each in (config, *presets()))
    has_own = given("--sample-prompts", arguments) is not None or prompts not in known
    own_devices = given("--devices", arguments) is not None
    return dataclasses.replace(command, config=config, own_samples=has_own, own_devices=own_devices)

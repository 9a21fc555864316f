"""The command `train.py`: trains a preset on a text, evaluates it, resumes it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Generic, TypeVar

import tyro

from lstm_jax.cli.arguments import HELP_ALL, importing, parse, run_command
from lstm_jax.cli.output import json_line, tell
from lstm_jax.systems import PRESETS, preset_named
from lstm_jax.systems.base import TrainConfig

PROG = "train.py"

HELP = """\
usage: {prog} [PRESET] [--FLAG VALUE] ...

Trains a model, shows its losses and samples, and keeps it in a run folder.

presets:
  docs         Python's own documentation, by characters; the default
  anna         a novel, by characters
  shakespeare  plays, by words
  lyrics       10,000 characters by heart; --data names a text
  poems        short poems, which fill acrostics; --data names a file of them
  reviews      a classifier: is a film review favourable?

common flags:
  --data PATH        what to train on, in place of the preset's own data
  --run-dir DIR      where the run is kept; by default runs/PRESET
  --epochs N         passes over the data
  --steps N          optimizer steps in all, in place of epochs
  --batch-size N     sequences side by side
  --layers N         stacked layers
  --hidden-size N    units of each layer
  --learning-rate X  the highest of the schedule
  --resume           go on from the newest checkpoint of the run's folder
  --eval-only        only print the held-out loss of that checkpoint

{prog} PRESET --help-all prints all flags with the preset's values."""

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class TrainCommand(Generic[C]):
    """Train a system, watch it learn, and keep it in a run folder.

    Attributes:
        config: the run's settings.
        preset: docs (the default), anna, shakespeare, poems, reviews or lyrics; see --help.
        as_published: with every setting and flaw of the published system that the preset follows.
        run_dir: the run's folder; by default runs/PRESET.
        resume: go on from the newest checkpoint of the run folder, with its own settings.
        eval_only: print the held-out loss of the run folder's newest checkpoint, and no more.
        profile: write a JAX trace of a few steps into this folder.
        tensorboard: also write metrics and samples for TensorBoard, into RUN_DIR/tensorboard.
        wandb: also log them to Weights & Biases; WANDB_MODE=offline keeps them in RUN_DIR/wandb.
    """

    config: Annotated[C, tyro.conf.arg(name="")]
    preset: Annotated[str, tyro.conf.Positional] = "docs"
    as_published: bool = False
    run_dir: Path | None = None
    resume: bool = False
    eval_only: bool = False
    profile: Path | None = None
    tensorboard: bool = False
    wandb: bool = False


def main() -> int:
    """The entry point."""
    return run_command(PROG, train_command)


def train_command(arguments: Sequence[str], prog: str = PROG) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises:
        ValueError: for whatever the user can mend.
    """
    command = read_arguments(arguments, prog)
    folder_path = command.run_dir or Path("runs") / command.config.preset
    # Flax, Optax and Orbax take seconds to import: arguments are checked, and help shown, before.
    with importing():
        from lstm_jax.cli import running

    if command.eval_only:
        print(json_line(running.evaluate_run(folder_path, command.config)))
        return 0
    preset = preset_named(command.preset)
    with _Stop() as stop:
        profile = None if command.profile is None else str(command.profile)
        running.train_run(
            folder_path,
            command.config,
            resume=command.resume,
            own_samples=_is_named("--sample-prompts", arguments)
            or _samples(command.config) != _samples(preset),
            profile_dir=profile,
            tensorboard=command.tensorboard,
            wandb=command.wandb,
            should_stop=stop.asked,
        )
    return 128 + stop.signal if stop.signal else 0


def _samples(config: TrainConfig) -> object:
    return getattr(config, "sample_prompts", None)


def _is_named(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag was given, be it with the value that it has anyway."""
    flags = (argument.partition("=")[0].replace("_", "-") for argument in arguments)
    return flag in flags


def read_arguments(arguments: Sequence[str], prog: str = PROG) -> TrainCommand[TrainConfig]:
    """Reads the flags over the defaults they change: a preset's, or those of the run resumed."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    first.add_argument("--run-dir", "--run_dir", type=Path)
    first.add_argument("--init-from", "--init_from", type=Path)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--eval-only", "--eval_only", action="store_true")
    first.add_argument("--as-published", "--as_published", action="store_true")
    try:
        seen, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(
            f"{error}; one that begins with dashes is given as --run-dir=DIR; see {prog} --help"
        ) from None
    named = arguments[0] if arguments and not arguments[0].startswith("-") else seen.preset
    default = preset_named(named or PRESETS[0].preset, as_published=seen.as_published)
    goes_on = seen.resume or seen.eval_only
    if (goes_on or seen.init_from) and not {"-h", "--help", HELP_ALL} & set(arguments):
        with importing():
            from lstm_jax.training.run import RunFolder, read_description

        folder = (seen.run_dir or Path("runs") / default.preset) if goes_on else seen.init_from
        stored = read_description(RunFolder(folder)).config
        if named and stored.preset != named:
            raise ValueError(f"{folder} is a run of preset {stored.preset!r}, not {named!r}")
        default = stored
    with_flags_of: Any = TrainCommand[type(default)]  # type: ignore[misc]
    command: TrainCommand[TrainConfig] = parse(
        with_flags_of, TrainCommand(default, default.preset), arguments, prog, HELP
    )
    for preset in (command.preset, command.config.preset):
        if preset != default.preset:
            raise ValueError(f"the preset comes first: {prog} {preset} ...; see {prog} --help")
    config = command.config
    if _is_named("--epochs", arguments) and not _is_named("--steps", arguments):
        config = dataclasses.replace(config, steps=None)
    if config.init_from is not None:
        config = dataclasses.replace(config, init_from=os.path.abspath(config.init_from))
    return dataclasses.replace(command, config=config)


class _Stop:
    """Notes SIGINT, SIGTERM or SIGHUP, so that training ends after a step.

    Another SIGINT or SIGTERM ends it at once; SIGHUP comes twice where a terminal is closed, from
    the terminal and from its shell. Under nohup it is ignored.
    """

    def __init__(self) -> None:
        self.signal = 0

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signal != 0

    def __enter__(self) -> _Stop:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            tell("stopping: the state is being saved")
        elif number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt

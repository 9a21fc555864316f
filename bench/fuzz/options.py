"""Command lines: wrong types, numbers that are none, flags that don't exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from bench.fuzz.run_files import require_types
from bench.fuzz.trial import require, require_only
from lstm_jax.cli.arguments import parse
from lstm_jax.cli.classify import ClassifyCommand
from lstm_jax.cli.convert import ConvertCommand
from lstm_jax.cli.export import ExportCommand
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.cli.train import TrainCommand, read_arguments
from lstm_jax.systems import PRESETS

VALUES = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "2",
    "1.5",
    "1e3",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "1_000",
    "0x10",
    "\u0663",
    "9" * 30,
    "-" + "9" * 30,
    "9" * 400,
    "9" * 5_000,
    "true",
    "None",
    "none",
    "[]",
    "{}",
    "--",
    "-",
    "=",
    "x",
    "Ω",
    "e\u0301",
    "\U0001f600",
    "\udc80",
    "a\0b",
    "a\nb",
    "a" * 5_000,
    "../..",
    "/dev/null",
    "newest",
    "lstm",
    "float32",
)
"""What a flag may be given."""


@dataclass(frozen=True)
class Options:
    """The command lines of all commands, as far as they are read before anything else is done."""

    name: str = "options"
    share: int = 6

    @cached_property
    def _readers(self) -> list[tuple[list[str], list[str], Callable[[Sequence[str]], Any]]]:
        """Of each command: its flags, what it must be given, and how it reads them."""
        presets = [
            (["--run-dir", "--resume", "--eval-only", "--as-published", *flags_of(preset)],
             [preset.preset], read_arguments)
            for preset in PRESETS
        ]  # fmt: skip
        return [
            *presets,
            (flags_of(SampleCommand), ["run"], _reader(SampleCommand)),
            (flags_of(SampleCommand), ["run"], _reader(SampleCommand)),
            (flags_of(ClassifyCommand), ["run"], _reader(ClassifyCommand)),
            (flags_of(ConvertCommand), ["run", "{place}/a.safetensors"], _reader(ConvertCommand)),
            (flags_of(ExportCommand), ["run", "{place}/program"], _reader(ExportCommand)),
        ]

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        flags, given, read = rng.choice(self._readers)
        arguments = [each.replace("{place}", str(place)) for each in given]
        arguments += hostile_flags(rng, flags)
        try:
            command = read(arguments)
        except SystemExit as exit:
            require(not exit.code, f"it exits with {exit.code}")
            return
        finally:
            require_only(place)
        if isinstance(command, TrainCommand):
            require_types(command.config)


def hostile_flags(rng: Random, flags: Sequence[str]) -> list[str]:
    """A few flags with values, most of them odd."""
    arguments: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        flag, value = rng.choice(flags), rng.choice(VALUES)
        match rng.randrange(10):
            case 0:
                arguments.append(flag)
            case 1:
                arguments.append(value)
            case 2:
                arguments += [flag.replace("-", "_").replace("__", "--", 1), value]
            case 3:
                arguments += [flag[:-1], value]
            case 4:
                arguments += [flag, value, rng.choice(VALUES)]
            case 5 | 6:
                arguments.append(f"{flag}={value}")
            case _:
                arguments += [flag, value]
    return arguments


def flags_of(owner: Any, prefix: str = "--") -> list[str]:
    """The flags of a dataclass, or of an instance with others inside."""
    flags: list[str] = []
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name, None)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += flags_of(value, f"{name}.")
        else:
            flags.append(name)
    return flags


def _reader(command: type[Any]) -> Callable[[Sequence[str]], Any]:
    return lambda arguments: parse(command, None, arguments, "command")

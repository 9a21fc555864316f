"""The commands: `lstm-jax COMMAND`, `python -m lstm_jax COMMAND`, train.py and sample.py.

The command line is parsed first, as importing what does the work takes longer.
"""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.console import importing, run_command
from lstm_jax.cli.options import (
    SAMPLE_HELP,
    ClassifyCommand,
    ConvertCommand,
    ExportCommand,
    PlotCommand,
    SampleCommand,
)

PROG = "lstm-jax"

COMMANDS: dict[str, tuple[type[Any] | str, str]] = {
    "train": ("train_options", "[PRESET]: train, resume or evaluate a model, like train.py"),
    "sample": (SampleCommand, "RUN_DIR: generate or score texts, like sample.py"),
    "classify": (ClassifyCommand, "RUN_DIR [FILE]: label texts, one per line, with a classifier"),
    "convert": (ConvertCommand, "SOURCE TARGET: save the weights of a run or file as safetensors"),
    "export": (ExportCommand, "RUN_DIR TARGET: save the model as a program that only needs JAX"),
    "plan": ("plan", "[PRESET]: estimate a model's memory, traffic and time on a mesh"),
    "plot": (PlotCommand, "RUN_DIR ...: draw the curves of several runs in one picture"),
}
"""For each command its options, or the module that defines them, and its description.

The module with the command's name has its `run`.
"""


def main() -> int:
    """Entry point of `lstm-jax`."""
    words = sys.argv[1:2]
    return run_command(" ".join([PROG, *(word for word in words if word in COMMANDS)]), dispatch)


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command named by the first word; raises ValueError for user errors."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: {PROG} COMMAND ...; see {PROG} COMMAND --help")
        for word, (_, about) in COMMANDS.items():
            print(f"  {word:8} {about}")
        return 0
    word, *rest = arguments
    if word not in COMMANDS:
        choices = ", ".join(COMMANDS)
        raise ValueError(f"the command is {word!r}; choose one of {choices}, see {PROG} --help")
    return run(word, rest)


def run(word: str, arguments: Sequence[str], prog: str | None = None) -> int:
    """Run a command and return the exit code; raises ValueError for user errors."""
    prog = prog or f"{PROG} {word}"
    options, _ = COMMANDS[word]
    if isinstance(options, str):  # depends on a preset or run in the command line
        with importing():
            reader = import_module(f"lstm_jax.cli.{options}")
        command: Any = reader.read_arguments(arguments, prog)
    else:
        command = parse(options, None, arguments, prog, SAMPLE_HELP if word == "sample" else None)
    with importing():
        work = import_module(f"lstm_jax.cli.{word}")
    return work.run(command)


train_command = partial(run, "train", prog="train.py")
sample_command = partial(run, "sample", prog="sample.py")

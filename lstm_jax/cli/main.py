"""The command `lstm-jax`, or `python -m lstm_jax`: all commands by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from lstm_jax.cli.arguments import run_command

PROG = "lstm-jax"

COMMANDS = {
    "train": "[PRESET]: train a model, evaluate it, resume it, as train.py does",
    "sample": "RUN_DIR: write with it, or score texts, as sample.py does",
    "classify": "RUN_DIR [FILE]: label texts, one a line, with a trained classifier",
    "convert": "SOURCE TARGET: weights of a run or a file, as safetensors",
    "export": "RUN_DIR TARGET: a run's model as a program that needs JAX alone",
    "plot": "RUN_DIR ...: the curves of several runs in one picture",
}
"""Each is the function `NAME_command` of the module `lstm_jax.cli.NAME`."""


def main() -> int:
    """The entry point."""
    words = sys.argv[1:2]
    return run_command(" ".join([PROG, *(word for word in words if word in COMMANDS)]), dispatch)


def dispatch(arguments: Sequence[str]) -> int:
    """Runs the command that the first word names; raises ValueError for what the user can mend."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: {PROG} COMMAND ...; see {PROG} COMMAND --help")
        for word, about in COMMANDS.items():
            print(f"  {word:8} {about}")
        return 0
    word, *rest = arguments
    if word not in COMMANDS:
        choices = ", ".join(COMMANDS)
        raise ValueError(f"the command is {word!r}; choose one of {choices}, see {PROG} --help")
    command = getattr(import_module(f"lstm_jax.cli.{word}"), f"{word}_command")
    code: int = command(rest, f"{PROG} {word}")
    return code

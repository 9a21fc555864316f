"""The commands of `python -m lstm_jax.interop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lstm_jax.interop.convert import convert_command
from lstm_jax.interop.export_run import export_command

PROG = "python -m lstm_jax.interop"

_COMMANDS: dict[str, tuple[Callable[[Sequence[str], str], int], str]] = {
    "convert": (convert_command, "SOURCE TARGET: weights of a run or a file, as safetensors"),
    "export": (export_command, "RUN_DIR TARGET: a run's model as a program, for JAX alone to run"),
}


def interop_command(arguments: Sequence[str]) -> int:
    """Runs the command that the first word names; raises ValueError for what the user can mend."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(f"usage: {PROG} COMMAND ...; see {PROG} COMMAND --help")
        for word, (_, about) in _COMMANDS.items():
            print(f"  {word} {about}")
        return 0
    word, *rest = arguments
    if word not in _COMMANDS:
        choices = ", ".join(_COMMANDS)
        raise ValueError(f"the command is {word!r}; choose one of {choices}, see {PROG} --help")
    return _COMMANDS[word][0](rest, f"{PROG} {word}")

"""What tests of the commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lstm_jax.cli.main import run, sample_command, train_command

ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{n} bottles of milk in row {n % 7} of the wall.\n" for n in range(400))
SMALL = shlex.split(
    "--model.hidden-size 16 --batch-size 4 --sequence-length 20 --steps 12 --log-every 4 "
    "--evaluate-every 6 --checkpoint-every 6 --sample-every 12 --sample.length 30"
)
"""Settings of a run of `TEXT`; those that are alike share their compiled step."""

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]
"""Calls a command with arguments: exit code, standard output, standard error."""
Refusal = Callable[..., str]
"""Calls a command that refuses its arguments: the line that it prints."""

classify_command = partial(run, "classify")

__all__ = ["classify_command", "sample_command", "train_command"]


def snapshot(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

"""What tests of the commands share."""

import shlex
from collections.abc import Callable
from functools import partial

from lstm_jax.cli.main import run, sample_command, train_command

SMALL = shlex.split(
    "--model.hidden-size 16 --batch-size 4 --sequence-length 20 --steps 12 --log-every 4 "
    "--evaluate-every 6 --checkpoint-every 6 --sample-every 12 --sample.length 30"
)
"""Settings of a run; those that are alike share their compiled step."""

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]
"""Calls a command with arguments: exit code, standard output, standard error."""
Refusal = Callable[..., str]
"""Calls a command that refuses its arguments: the line that it prints."""

classify_command = partial(run, "classify")
plan_command = partial(run, "plan")

__all__ = ["classify_command", "plan_command", "sample_command", "train_command"]

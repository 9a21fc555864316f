"""Restores a run's newest checkpoint in this process and others, and saves it as the next step.

python tests/faults/save_again.py --run-dir DIR --devices N [--coordinator HOST:PORT ...]
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.console import run_command
from lstm_jax.cli.processes import Launch, joined
from lstm_jax.systems import read_system
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.task import make_task, restored_state


@dataclass(frozen=True)
class Command:
    """Restore and save."""

    run_dir: Path
    devices: int
    launch: Annotated[Launch, tyro.conf.arg(name="")] = field(default_factory=Launch)


def run(arguments: list[str]) -> int:
    command = parse(Command, None, arguments, "save_again.py")
    folder = RunFolder(command.run_dir)
    with joined(command.launch), CheckpointStore(folder.checkpoints, keep_latest=9) as store:
        config = read_description(folder).config
        task = make_task(
            read_system(dataclasses.replace(config, devices=command.devices), folder.path)
        )
        state, progress = restored_state(task, store)
        store.save(int(state.step) + len(store.steps()), state, progress)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("save_again.py", run))

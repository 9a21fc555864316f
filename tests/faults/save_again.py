"""Restores a run's newest checkpoint in this process and others, and saves it as the next step.

python tests/faults/save_again.py --resume --run-dir DIR --devices N [--coordinator HOST:PORT ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lstm_jax.cli.console import run_command
from lstm_jax.cli.processes import joined
from lstm_jax.cli.train_options import read_arguments
from lstm_jax.systems import read_system
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import make_task, restored_state


def run(arguments: Sequence[str]) -> int:
    command = read_arguments(arguments)
    folder = RunFolder(command.run_dir)
    with joined(command.launch):
        store = CheckpointStore(folder.checkpoints, keep_latest=9)
        task = make_task(read_system(command.config, folder.path))
        state, progress = restored_state(task, store)
        store.save(int(state.step) + len(store.steps()), state, progress)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("save_again.py", run))

"""`train.py` in which what feeds the steps fails, as it may in one of several processes.

Or one that trains nothing: it restores a run's newest checkpoint, and saves it as the next step.

python tests/faults/odd_train.py [--fails-at STEP ERROR] [--saves-again] FLAGS
"""

import argparse
import builtins
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lstm_jax.cli.console import run_command
from lstm_jax.cli.main import train_command
from lstm_jax.cli.processes import joined
from lstm_jax.cli.train_options import read_arguments
from lstm_jax.systems import read_system
from lstm_jax.systems.language import LanguageSystem
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import make_task, restored_state

feed = LanguageSystem.feed


def failing(system: LanguageSystem) -> Callable[[int], Any]:
    data, (step, error) = feed(system), odd.fails_at

    def data_or_error(at: int) -> Any:
        if at == int(step):
            raise getattr(builtins, error)(f"no data for step {step}")
        return data(at)

    return data_or_error


def save_again(arguments: Sequence[str]) -> int:
    command = read_arguments(arguments)
    folder = RunFolder(command.run_dir)
    with joined(command.launch):
        store = CheckpointStore(folder.checkpoints, keep_latest=9)
        task = make_task(read_system(command.config, folder.path))
        state, progress = restored_state(task, store)
        store.save(int(state.step) + len(store.steps()), state, progress)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--fails-at", nargs=2)
    parser.add_argument("--saves-again", action="store_true")
    odd, sys.argv[1:] = parser.parse_known_args()
    if odd.fails_at:
        LanguageSystem.feed = failing  # type: ignore[method-assign]
    sys.exit(run_command("train.py", save_again if odd.saves_again else train_command))

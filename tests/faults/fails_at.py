"""`train.py` in which what feeds the steps fails, as it may in one of several processes.

python tests/faults/fails_at.py [--fails-at STEP ERROR] FLAGS
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any

from lstm_jax.cli.console import run_command
from lstm_jax.cli.main import train_command
from lstm_jax.systems.language import LanguageSystem


def fail(at: int, error: type[Exception]) -> None:
    make = LanguageSystem.feed

    def failing(system: LanguageSystem) -> Callable[[int], Any]:
        feed = make(system)

        def data(step: int) -> Any:
            if step == at:
                raise error(f"no data for step {step}")
            return feed(step)

        return data

    LanguageSystem.feed = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    if "--fails-at" in sys.argv:
        place = sys.argv.index("--fails-at")
        _, step, name = sys.argv[place : place + 3]
        del sys.argv[place : place + 3]
        fail(int(step), getattr(builtins, name))
    sys.exit(run_command("train.py", train_command))

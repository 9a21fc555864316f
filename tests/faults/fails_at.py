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

feed = LanguageSystem.feed


def failing(system: LanguageSystem) -> Callable[[int], Any]:
    data = feed(system)

    def data_or_error(at: int) -> Any:
        if at == int(step):
            raise getattr(builtins, error)(f"no data for step {step}")
        return data(at)

    return data_or_error


if __name__ == "__main__":
    if "--fails-at" in sys.argv:
        place = sys.argv.index("--fails-at")
        _, step, error = sys.argv[place : place + 3]
        del sys.argv[place : place + 3]
        LanguageSystem.feed = failing  # type: ignore[method-assign]
    sys.exit(run_command("train.py", train_command))

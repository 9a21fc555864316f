"""The command `python -m bench`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

# On GPU several processes share the memory, of which each would otherwise take three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from lstm_jax.cli.console import run_command

BENCHES = {
    "train": "a whole training step, beside PyTorch, Flax, Keras, Equinox",
    "layer": "a bare LSTM or GRU, forward and backward, beside the same",
    "sample": "decode, prefill, filters, beside PyTorch and Flax",
    "memory": "peak memory and compilation of a training step, fresh processes",
    "growth": "our step against length, batch, size, vocabulary and remat",
    "scaling": "processes that train together, beside as many each for itself",
    "rate": "the rate of train.py's loop beside its bare training step",
    "systems": "what runs of train.py reached, beside published figures, n-grams",
    "launches": "what a GPU would launch a time step; compiled for one, not run",
    "vmem": "what a TPU would keep in its fast memory; compiled for one, not run",
    "endurance": "whether memory grows or the rate falls in a long run",
    "plot": "the picture of rows that a bench wrote with --json",
}
"""Description of each benchmark; its file in this folder has the same name."""

_BELOW = """
`python -m bench BENCH --help` names its flags. Most take --quick (a first
look), --rounds, --dtype, --json FILE (a row a line) and --plot FILE; those
with peers take --peers.

python -m bench train --systems anna --dtype bfloat16 --json rows.jsonl
python -m bench layer --cells gru --shapes 20,512,64,64 --plot times.png
python -m bench systems bench/results/systems/* --markdown table.md
"""


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, BENCHES))
        lines = [f"  {name:{width}}  {what}" for name, what in BENCHES.items()]
        print("\n".join(["usage: python -m bench BENCH [FLAGS]", "", *lines, _BELOW]), end="")
        return 0
    name, *rest = arguments
    if name not in BENCHES:
        raise ValueError(f"there is no bench {name!r}; choose from {', '.join(BENCHES)}")
    run: int = import_module(f"bench.{name}").main(rest)
    return run


if __name__ == "__main__":
    sys.exit(run_command("bench", main))

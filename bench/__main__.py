"""The command `python -m bench`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

# On GPU several processes share the memory, of which each would otherwise take three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.console import run_command

BENCHES = {
    "train": "a whole training step, beside PyTorch, Flax, Keras, Equinox",
    "layer": "a bare LSTM or GRU, forward and backward, beside the same",
    "sample": "decode, prefill, filters, beside PyTorch and Flax",
    "memory": "peak memory and compilation of a training step, fresh processes",
    "growth": "scaling of our step with length, batch, size, vocabulary and remat",
    "scaling": "processes that train together, compared with as many alone",
    "rate": "speed of train.py's loop relative to its bare training step",
    "systems": "results of train.py's runs, beside published figures and n-grams",
    "device": "everything on a GPU, in one run of a few minutes",
    "launches": "kernel launches per time step on a GPU; compiled, not run",
    "vmem": "use of a TPU's fast memory; compiled, not run",
    "endurance": "whether memory grows or the rate falls in a long run",
    "plot": "draw rows that a benchmark wrote with --json",
}
"""Description of each benchmark; its file in this folder has the same name."""

_BELOW = """
`python -m bench BENCH --help` lists its flags. Most take --quick (a first
look), --rounds, --dtype, --json FILE (a row per line) and --plot FILE; those
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
    bench = import_module(f"bench.{name}")
    return bench.main(parse(bench.Options, None, rest, f"bench {name}"))


if __name__ == "__main__":
    sys.exit(run_command("bench", main))

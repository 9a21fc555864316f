"""`python -m lstm_jax.interop COMMAND`: see `convert` and `export_run`."""

import sys

from lstm_jax.cli.arguments import run_command
from lstm_jax.interop.commands import PROG, interop_command

if __name__ == "__main__":
    sys.exit(run_command(PROG, interop_command))

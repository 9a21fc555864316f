"""Train a model: `python train.py [PRESET] [--data PATH] [--run-dir DIR] ...`; see --help."""

import os
import signal
import sys

if __name__ == "__main__":
    # Handles Ctrl-C during imports, where KeyboardInterrupt can get lost or crash an extension
    # module.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from lstm_jax.cli.console import run_command
    from lstm_jax.cli.main import train_command

    signal.signal(signal.SIGINT, before)
    sys.exit(run_command("train.py", train_command))

"""Generate text from a trained model: `python sample.py RUN [--prompt TEXT] ...`; see --help."""

import os
import signal
import sys

if __name__ == "__main__":
    # Handles Ctrl-C during imports, where KeyboardInterrupt can get lost or crash an extension
    # module.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from lstm_jax.cli.console import run_command
    from lstm_jax.cli.main import sample_command

    signal.signal(signal.SIGINT, before)
    sys.exit(run_command("sample.py", sample_command))

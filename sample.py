"""Writes text with a trained model: `python sample.py RUN_DIR [--prompt TEXT] ...`; see --help."""

import sys

from lstm_jax.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())

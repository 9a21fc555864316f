"""Trains a model: `python train.py [PRESET] [--data PATH] [--run-dir DIR] ...`; see --help."""

import sys

from lstm_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m lstm_jax COMMAND`: see `lstm_jax.cli.main`."""

import sys

from lstm_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench...` runs in the repository's root; so do its tests find it."""

from __future__ import annotations

import sys
from pathlib import Path

# `--import-mode=importlib` puts no folder on the path.
sys.path.append(str(Path(__file__).parents[2]))

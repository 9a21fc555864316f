"""Puts the folder of the shared small runs on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

"""Puts the folder of what the tests share on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

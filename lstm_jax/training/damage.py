"""Renames damaged files and folders instead of deleting them."""

from __future__ import annotations

from itertools import count
from pathlib import Path


def set_aside(path: Path) -> Path:
    """Renames it to NAME.damaged, or NAME.damaged-2 and so on: nothing is thrown away.

    Returns:
        Where it is now.
    """
    for number in count(1):
        aside = path.with_name(f"{path.name}.damaged{f'-{number}' if number > 1 else ''}")
        if not aside.exists():
            return path.rename(aside)
    raise AssertionError  # the numbers never end

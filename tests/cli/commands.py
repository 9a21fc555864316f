"""What tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]
"""Calls a command with arguments: exit code, standard output, standard error."""


def snapshot(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

"""`python -m bench...` runs in the repository's root; so do its tests find it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# `--import-mode=importlib` puts no folder on the path.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def short_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is not how long it takes."""
    monkeypatch.setattr("bench.measure._SECONDS_PER_VISIT", 0.02)
    monkeypatch.setattr("bench.products._SPECS", {"x @ w": "mk,kn->mn"})

"""What the tests of the numeric core share: float64 on request, and the cases' module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# `--import-mode=importlib` puts no folder of tests on the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield

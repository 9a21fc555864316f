"""Puts the folder of what the tests share on the path, and turns on float64 on request."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield

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


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Without LLVM's optimisations, which take most of these tests' time; XLA's own run as ever."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

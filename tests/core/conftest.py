"""What the tests of the numeric core share: float64 on request, and the cases' module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# `--import-mode=importlib` puts no folder of tests on the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without LLVM's optimisations, which take most of these tests' time.

    XLA's own passes, fusion among them, run as ever. Parity with PyTorch and Keras is tested
    fully optimised.
    """
    jax.config.update("jax_disable_most_optimizations", "parity" not in request.node.name)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield

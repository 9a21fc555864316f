"""Fixtures that tests of the numeric core share."""

import pytest
from core_cases import as_for_cuda
from jax import lax


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen while lowering is chosen as for a GPU."""
    monkeypatch.setattr(lax, "platform_dependent", as_for_cuda)

"""Counts what is refused and accepted.

python -m pytest tests/hostile --slow -n 0 --hypothesis-profile=hostile --table docs/reliability.md
"""

from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import settings

settings.register_profile(
    "hostile", settings.get_profile("project"), max_examples=750, derandomize=False
)


@pytest.fixture
def law(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What a test reads by; in the table it has the test's name, or that of its parameter."""
    from law import Law  # which asks for the profile, and that is not loaded before

    jax.local_devices()  # its threads are started before memory is limited
    plain = request.node.originalname.removeprefix("test_").replace("_", " ")
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    row: list[str | int] = [params.get("name", plain), 0, 0, 0]
    request.node.user_properties.append(("hostile", row))
    return Law(tmp_path, row)

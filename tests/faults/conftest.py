"""A small run that all may copy.

python -m pytest tests/faults --slow -n 0 --table docs/reliability.md
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import pytest
from short_runs import Place, Promise, task_of

from lstm_jax.training.task import Task


@pytest.fixture(autouse=True, scope="module")
def compilation_as_in_processes(request: pytest.FixtureRequest) -> None:
    """So that what is trained here is byte for byte what a process of the command trains."""
    jax.config.update("jax_disable_most_optimizations", not request.config.getoption("--slow"))


@pytest.fixture(scope="session")
def is_thorough(request: pytest.FixtureRequest) -> bool:
    """Whether figures are wanted: a hundred kills, and many flipped bits."""
    return request.config.getoption("--table") is not None


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Records a line of the table, and fails with its failures."""

    def kept(fault: str, tried: int, failures: Sequence[str], seen: str) -> None:
        row = [fault, tried, tried - len(failures), seen]
        request.node.user_properties.append(("faults", row))
        assert list(failures) == []
        assert tried > 0

    return kept


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory, is_thorough: bool) -> Place:
    return Place(tmp_path_factory.mktemp("faults"), 90 if is_thorough else 40)


@pytest.fixture(scope="package")
def whole(place: Place) -> Path:
    """A run that was left alone."""
    return place.finished("alone")


@pytest.fixture(scope="package")
def task(whole: Path) -> Task:
    return task_of(whole)

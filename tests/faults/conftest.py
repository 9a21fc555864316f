"""Puts the folder of what the tests share on the path; one small run that all may copy."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from bench.faults.tiny import Place, task_of
from lstm_jax.training.task import Task


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("faults"), 40)
    place.make()
    return place


@pytest.fixture(scope="package")
def whole(place: Place) -> Path:
    """A run that was left alone."""
    return place.finished("alone")


@pytest.fixture(scope="package")
def task(whole: Path) -> Task:
    return task_of(whole)

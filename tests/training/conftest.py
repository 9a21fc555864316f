"""Files that no test changes."""

import shutil
from pathlib import Path

import pytest
from tasks import fill, write_data


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "run"
    fill(path, 1, 2)
    return path


@pytest.fixture
def run(two_steps: Path, tmp_path: Path) -> Path:
    """A folder with the steps 1 and 2."""
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))

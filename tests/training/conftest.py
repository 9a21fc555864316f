"""Puts the folder of what the tests share on the path."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from states import fill


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "run"
    fill(path, 1, 2)
    return path


@pytest.fixture
def run(two_steps: Path, tmp_path: Path) -> Path:
    """A folder with the steps 1 and 2."""
    return Path(shutil.copytree(two_steps, tmp_path / "run"))

"""Files that no test changes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tasks import TEXT, fill


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
    """Data of every system: 23 characters of a text; 11 of poems, which also end."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    poems = ["".join(rng.choice(list("abcdefghijk"), rng.integers(1, 13))) for _ in range(70)]
    reviews = [f"{'ab'[row % 2]} {' '.join(poem)}\t{row % 2}" for row, poem in enumerate(poems)]
    (folder / "poems.txt").write_text("\n".join(f"title:{poem}" for poem in poems))
    (folder / "reviews.tsv").write_text("\n".join(["text\tlabel", *reviews, ""]))
    (folder / "vectors.txt").write_text("a 0.5 -1 2\nc 1 1 -0.5\n")
    (folder / "text.txt").write_text(TEXT)
    return folder

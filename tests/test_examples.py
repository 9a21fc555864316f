"""Every example runs, and does what its docstring says."""

from __future__ import annotations

import importlib.util
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the example that the test is named for returns; it prints one line."""
    name = request.node.name.removeprefix("test_")
    # It computes for longer than it is compiled.
    jax.config.update("jax_disable_most_optimizations", name != "many_models")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    returned = module.main()
    assert capsys.readouterr().out.count("\n") == 1
    return returned


def test_forecast(example: Any) -> None:
    error, baseline = example
    assert error < baseline / 20


def test_policy_gradient(example: Any) -> None:
    right, difference = example
    assert right > 0.8
    assert difference < 1e-6


def test_many_models(example: Any) -> None:
    assert example.shape == (8, 8)
    assert example[0].min() > 0.5
    assert example.mean(1).min() < 0.2


def test_transformations(example: Any) -> None:
    assert len(example) == 6
    assert example.pop("float64") < 1e-14
    assert max(example.values()) < 1e-6


def test_two_devices(example: Any) -> None:
    first, last, difference = example
    assert last < first / 2
    assert difference < 1e-6


@pytest.mark.skipif(find_spec("flatbuffers") is None, reason="flatbuffers is not installed")
def test_export_layer(example: Any) -> None:
    size, difference = example
    assert size > 1000
    assert difference < 1e-6


def test_every_example_has_a_test() -> None:
    assert {f"test_{path.stem}" for path in FOLDER.glob("*.py")} <= set(globals())


def test_the_documents_list_every_example() -> None:
    page = (FOLDER.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", page, flags=re.MULTILINE))
    assert listed == {path.name for path in FOLDER.glob("*.py")}

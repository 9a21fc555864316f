"""Every example runs, and does what its docstring says; so does the notebook."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from core_cases import cases

from lstm_jax import StackConfig, systems

FOLDER = Path(__file__).parent.parent / "examples"
NOTEBOOK = FOLDER.parent / "docs" / "quickstart.ipynb"


def module_of(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their annotations up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


EXAMPLES: dict[str, Callable[..., bool]] = {
    "forecast": lambda error, baseline: error < baseline / 20,
    "policy_gradient": lambda right, difference: right > 0.8 and difference < 1e-6,
    "many_models": lambda *solved: (
        np.shape(solved) == (8, 8)
        and solved[0].min() > 0.5
        and min(each.mean() for each in solved) < 0.2
    ),
    "transformations": lambda *differences: len(differences) == 6 and max(differences) < 1e-6,
    "two_devices": lambda first, last, difference: last < first / 2 and difference < 1e-6,
    "own_cell": lambda first, last: first > 1.5 and last < 0.1,
    "export_layer": lambda size, difference: size > 1000 and difference < 1e-6,
}
"""Whether what an example returns is as its docstring says."""


@cases("name", EXAMPLES, "export_layer")
def test_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "export_layer":
        pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    # It computes for longer than it is compiled.
    jax.config.update("jax_disable_most_optimizations", name != "many_models")
    returned = module_of(name).main()
    assert capsys.readouterr().out.count("\n") == 1
    if isinstance(returned, dict):
        assert returned["float64"] < 1e-14
        returned = returned.values()
    assert EXAMPLES[name](*returned)


@pytest.mark.slow
def test_own_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(systems, "SYSTEMS", systems.SYSTEMS)
    assert module_of("own_system").main("abbacccab") == " ^^ ^^^  "
    assert re.search(r"held out \S+  accuracy (1\.|0\.9)", capsys.readouterr().out)


def test_own_system_drops_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "SYSTEMS", systems.SYSTEMS)
    module = module_of("own_system")
    plain = StackConfig(layers=2, hidden_size=8)
    layers, readout = module.Tagger(plain).init(jax.random.key(0))
    params = (layers, readout + 1)
    batch = module.tagged(np.random.default_rng(0), 5, 4)

    def loss(config: StackConfig, key: Any) -> float:
        sums, _ = module.Tagger(config).sums(params, (), batch, 0, key)
        return float(sums.parts[""].loss)

    for rate in ("dropout", "recurrent_dropout"):
        config = replace(plain, **{rate: 0.5})
        assert loss(config, jax.random.split(jax.random.key(1), 4)) != loss(plain, None)
        assert loss(config, None) == loss(plain, None)


def test_every_example_has_a_test_and_is_in_the_documents() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {*EXAMPLES, "own_system"}
    page = (FOLDER.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert names == set(re.findall(r"^\| `(\w+)\.py` \|", page, flags=re.MULTILINE))


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", ())) for output in cell["outputs"])


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: the model learns, and the layer's cells print what the notebook shows."""
    pytest.importorskip("matplotlib", reason="the extra plots is not installed").use("agg")
    cells, prints = code_cells(), []
    variables: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), variables)
        prints.append(capsys.readouterr().out)
    assert variables["heldout_losses"][-1] < 1.5
    text = [cell["id"] for cell in cells].index("text-code")
    assert prints[:text] == [printed(cell) for cell in cells[:text]]


def test_the_notebook_is_committed_as_one_clean_run_left_it() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    assert all(cell["metadata"] == {} for cell in cells)  # no times of execution
    raw = NOTEBOOK.read_text(encoding="utf-8")
    assert len(raw) < 300_000
    assert not re.search(r"/(home|root|tmp|Users|usr|work)/", raw)

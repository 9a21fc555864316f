"""Every public name has an example, and all examples do what they show."""

import doctest
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import interop, sampling

ROOT = Path(__file__).parents[1]
ASSUMED = {"jax": jax, "jnp": jnp, "np": np, "lstm_jax": lstm_jax}


def public() -> dict[str, Any]:
    """What the packages export and the pages of docs/api list, each once, by name."""
    names = [f"{p.__name__}:{name}" for p in (lstm_jax, sampling, interop) for name in p.__all__]
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        listed = r"^::: (\S+)\n    options: \{members: \[(.*)\]\}"
        for module, members in re.findall(listed, page.read_text("utf-8"), re.MULTILINE):
            names += [f"{module}:{member}" for member in members.split(", ")]
    found: dict[int, tuple[str, Any]] = {}
    for name in names:
        module, _, member = name.partition(":")
        each = getattr(importlib.import_module(module), member)
        if str(getattr(each, "__module__", "")).startswith("lstm_jax"):  # no constant, no alias
            found.setdefault(id(each), (f"{module}.{member}", each))
    return dict(found.values())


def test_every_public_name_has_an_example() -> None:
    examples = doctest.DocTestParser().get_examples
    assert [name for name, each in public().items() if not examples(each.__doc__ or "")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", public())
def test_examples_do_what_they_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a trained run, `runs/docs`, and a PyTorch file for what loads those."""
    if name.endswith("load_pytorch"):
        torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
        torch.save(torch.nn.LSTM(3, 4).state_dict(), tmp_path / "model.pt")
    shutil.copytree(
        ROOT / "tests" / "faults" / "fixtures" / "runs" / "lstm", tmp_path / "runs/docs"
    )
    monkeypatch.chdir(tmp_path)
    text = public()[name].__doc__
    test = doctest.DocTestParser().get_doctest(text, dict(ASSUMED), name, None, None)
    assert not doctest.DocTestRunner().run(test).failed

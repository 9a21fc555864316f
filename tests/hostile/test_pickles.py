"""Nothing that is read can bring code along: no pickle on any way in."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lstm_jax
from lstm_jax.cli.main import run as run_a_command
from lstm_jax.interop.files import load_arrays

PACKAGE = Path(lstm_jax.__file__).parent
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "np.fromfile"}
NO_PICKLE = ("allow_pickle", False)
SAFE_IF = {"torch.load": ("weights_only", True), "np.load": NO_PICKLE, "numpy.load": NO_PICKLE,
           "format.read_array": NO_PICKLE}  # fmt: skip
"""What each of these calls must say; none may say the contrary."""


def unsafe_places(source: str) -> Iterator[str]:
    """Imports and calls of a module that could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = RUNS_CODE & {alias.name.split(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module)):
                found = RUNS_CODE & {module.split(".")[0]}
            case ast.Call(func=func, keywords=keywords):
                name = ".".join(ast.unparse(func).split(".")[-2:])
                said = {(word.arg, getattr(word.value, "value", None)) for word in keywords}
                rules = dict(SAFE_IF.values())
                is_denied = any(word in rules and rules[word] is not value for word, value in said)
                is_safe = name not in CALLS and (name not in SAFE_IF or SAFE_IF[name] in said)
                found = {name} if is_denied or not is_safe else set()
            case _:
                continue
        yield from (f"line {node.lineno}: {name}" for name in found)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_reads_a_pickle(path: Path) -> None:
    assert list(unsafe_places(path.read_text(encoding="utf-8"))) == []


WAYS_IN = ("import pickle", "import pickle as p", "from pickle import loads",
           "import joblib.memory", "torch.load(path)", "torch.load(path, weights_only=False)",
           "np.load(path)", "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)",
           "np.lib.format.read_array(file)", "eval(text)")  # fmt: skip
RESTRICTED_READERS = ("torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)",
                      "json.load(file)")  # fmt: skip


def test_the_scan_sees_each_way_in_and_lets_restricted_readers_pass() -> None:
    assert [len(list(unsafe_places(source))) for source in WAYS_IN] == [1] * len(WAYS_IN)
    assert [place for source in RESTRICTED_READERS for place in unsafe_places(source)] == []


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    """A file that exists once code from a pickle has run."""
    path = tmp_path / "touched"
    pickle.loads(pickle.dumps(Touches(path)))
    assert path.exists()  # it works where a pickle is read
    path.unlink()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_in_pytorch_s_file_is_refused(is_zip: bool, touched: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"weight_ih_l0": torch.zeros(4, 1), "weight_hh_l0": Touches(touched)}
    source, target = tmp_path / "weights.pth", tmp_path / "out.safetensors"
    torch.save(state, source, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match="no file of tensors alone"):
        run_a_command("convert", [str(source), str(target)])
    assert not touched.exists()
    assert not target.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.npz", "weights.pkl", "weights"])
def test_a_bare_pickle_is_refused_under_any_name(name: str, touched: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Touches(touched)))
    with pytest.raises(ValueError):
        load_arrays(tmp_path / name)
    assert not touched.exists()

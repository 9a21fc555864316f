"""Nothing that is read can bring code along: no pickle on any way in."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import lstm_jax
from lstm_jax.cli.main import run as run_a_command
from lstm_jax.interop.files import load_arrays


def test_no_reader_is_asked_for_pickles() -> None:
    """Nor does lint let a module of them, or `eval` and its kin, into the package."""
    for module in Path(lstm_jax.__file__).parent.rglob("*.py"):
        unsafe = r"allow_pickle=(?!False)|weights_only=(?!True)|torch\.load\((?!.*weights_only)"
        assert not re.search(unsafe, module.read_text(encoding="utf-8")), module


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

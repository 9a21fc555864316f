"""Files of named arrays: what is written comes back, and nothing a file brings along is run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import FORMS, assert_same_bits, draw_layers, normal, stacks

from lstm_jax import interop
from lstm_jax.interop import files
from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModelParams, TiedOutputParams

DTYPES = ("float64", "float32", "float16", "bfloat16", "int32", "bool")


def safetensors() -> None:
    pytest.importorskip("safetensors", reason="safetensors, an optional extra, is not installed")


def a_model(entry: str) -> LanguageModelParams:
    size = {"one-hot": 7, "embedding": 2, "tied": 4}[entry]
    b = jnp.asarray(normal(1, 7))
    return LanguageModelParams(
        None if entry == "one-hot" else jnp.asarray(normal(2, 7, size)),
        draw_layers("gru_before", 2, False, size, 4),
        TiedOutputParams(b) if entry == "tied" else OutputParams(jnp.asarray(normal(3, 4, 7)), b),
    )


@pytest.mark.parametrize("form", FORMS)
@stacks
def test_layers_by_plain_names_come_back_bit_for_bit(
    form: str, layers: int, bidirectional: bool
) -> None:
    drawn = draw_layers(form, layers, bidirectional, 3, 4)
    arrays = interop.layers_to_plain(drawn)
    first = "layers/0/forward/w_x" if bidirectional else "layers/0/w_x"
    assert arrays[first].shape[0] == 3
    assert_same_bits(interop.layers_from_plain(arrays), drawn)


@pytest.mark.parametrize("entry", ["one-hot", "embedding", "tied"])
def test_models_by_plain_names_come_back_bit_for_bit(entry: str) -> None:
    params = a_model(entry)
    arrays = interop.language_model_to_plain(params)
    assert ("embedding" in arrays) == (entry != "one-hot")
    assert ("output/w" in arrays) == (entry != "tied")
    assert_same_bits(interop.language_model_from_plain(arrays), params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers/0/w_y": np.ones(1)}, "'layers/0/w_y' is no plain name"),
        ({"layers/1/b": np.ones(16)}, "lacks b, w_h, w_x|lacks w_h, w_x"),
        (
            {"layers/0/b_hn": np.ones(4, np.float32)},
            "has a b_hn, but its shapes are of the cell ls",
        ),
        ({"layers/0/w_x": np.ones((3, 12), np.float32)}, r"w_x has shape \(3, 12\); expected"),
        ({"layers/0/forward/b": np.ones(16)}, "has forward, which nothing here takes"),
        ({"layers/2/b": np.ones(16)}, "layers lacks 1"),
        ({"layers/0/b": np.ones(16)}, "set jax_enable_x64"),
    ],
)
def test_plain_names_that_do_not_fit_are_refused_in_words(
    changes: dict[str, Any], message: str
) -> None:
    arrays = interop.layers_to_plain(draw_layers("lstm", 1, False, 3, 4))
    with pytest.raises(ValueError, match=message):
        interop.layers_from_plain(arrays | changes)


def test_a_model_without_embedding_and_output_weights_is_refused() -> None:
    arrays = interop.language_model_to_plain(a_model("tied"))
    del arrays["embedding"]
    with pytest.raises(ValueError, match="neither embedding nor output/w"):
        interop.language_model_from_plain(arrays)
    with pytest.raises(ValueError, match="model lacks output/b"):
        interop.language_model_from_plain({"output/w": normal(0, 2, 3)})


def test_safetensors_keep_every_dtype_shape_and_order(tmp_path: Path) -> None:
    safetensors()
    arrays = {name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in DTYPES}
    arrays["strided"] = np.arange(6.0).reshape(2, 3).T
    arrays["big endian"] = np.arange(3, dtype=">f4")
    arrays["scalar"], arrays["empty"] = np.float32(3), np.zeros((0, 2), np.float32)
    path = tmp_path / "a.safetensors"
    files.save_safetensors(path, arrays, metadata={"format": "pt"})
    loaded = files.load_arrays(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == np.asarray(array).dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], array)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.slow
def test_our_layers_go_through_a_file_that_pytorch_s_library_reads(tmp_path: Path) -> None:
    safetensors()
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    from safetensors.torch import load_file

    drawn = draw_layers("gru_after", 2, True, 3, 4)
    path = tmp_path / "gru.safetensors"
    files.save_safetensors(path, interop.layers_to_pytorch(drawn))
    module = torch.nn.GRU(3, 4, num_layers=2, bidirectional=True)
    module.load_state_dict(load_file(path), strict=True)
    assert_same_bits(interop.layers_from_pytorch(module.state_dict()), drawn)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    safetensors()
    path = tmp_path / "a.safetensors"
    files.save_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="b is object; expected numbers"):
        files.save_safetensors(path, {"b": np.array([None])})
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError):
        files.save_safetensors(tmp_path / "folder.safetensors", {"a": np.ones(2)})
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "folder.safetensors"]


def test_broken_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    safetensors()
    path = tmp_path / "a.safetensors"
    files.save_safetensors(path, {"a": np.ones(200)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.safetensors is no whole safetensors file"):
        files.load_arrays(path)
    with pytest.raises(FileNotFoundError):
        files.load_arrays(tmp_path / "none.safetensors")
    for name in ("a.npz", "a"):
        with pytest.raises(ValueError, match=r"expected one of \.safetensors, \.pt, \.pth"):
            files.load_arrays(tmp_path / name)
    for name in ("a.keras", "a.h5"):
        with pytest.raises(ValueError, match=r"get_weights\(\) returns to layers_from_keras"):
            files.load_arrays(tmp_path / name)


def test_a_missing_library_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        files.load_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="pip install torch"):
        files.load_pytorch(tmp_path / "a.pt")


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_pytorch_s_files_give_tensors_and_run_nothing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    module = torch.nn.LSTM(3, 4)
    expected = interop.layers_from_pytorch(module.state_dict())
    for name, content in (
        ("a.pt", module.state_dict()),
        ("b.pth", {"state_dict": module.state_dict(), "epoch": 3}),
    ):
        torch.save(content, tmp_path / name)
        state = files.load_arrays(tmp_path / name)
        assert_same_bits(interop.layers_from_pytorch(state), expected)
    torch.save(Bomb(str(tmp_path / "made")), tmp_path / "bomb.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb(str(tmp_path / "made")), 2))
    (tmp_path / "noise.pt").write_bytes(b"nothing of PyTorch's")
    torch.save(module, tmp_path / "module.pt")
    for name in ("bomb.pt", "pickle.pt", "noise.pt", "module.pt"):
        with pytest.raises(ValueError, match="is no file of tensors alone"):
            files.load_arrays(tmp_path / name)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_pytorch_s_files_of_something_else_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    torch.save(torch.ones(2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds a Tensor; expected a state_dict"):
        files.load_pytorch(tmp_path / "a.pt")
    torch.save({"epoch": 3, "model": {}}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="holds epoch, model, no tensors"):
        files.load_pytorch(tmp_path / "b.pt")


def test_importing_the_package_imports_no_framework() -> None:
    script = (
        "import sys, lstm_jax.interop; "
        "print([m for m in ('flax', 'optax', 'orbax', 'torch', 'keras', 'safetensors') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

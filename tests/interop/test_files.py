"""Files of named arrays: what is written comes back; what is no such file is refused."""

import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_same_bits
from interop_cases import draw_model

from lstm_jax import interop

DTYPES = ("float64", "float32", "float16", "bfloat16", "int32", "bool")
INSTALLED = "the library, an optional extra, is not installed"


def test_safetensors_keep_every_dtype_shape_and_order_or_what_was_there(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason=INSTALLED)
    arrays = {name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in DTYPES}
    arrays["strided"] = np.arange(6.0).reshape(2, 3).T
    arrays["big endian"] = np.arange(3, dtype=">f4")
    arrays["scalar"], arrays["empty"] = np.float32(3), np.zeros((0, 2), np.float32)
    path, folder = tmp_path / "a.safetensors", tmp_path / "folder.safetensors"
    interop.save_safetensors(path, arrays, metadata={"format": "pt"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="b is object; expected numbers"):
        interop.save_safetensors(path, {"b": np.array([None])})
    folder.mkdir()
    with pytest.raises(OSError):
        interop.save_safetensors(folder, {"a": np.ones(2)})
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "folder.safetensors"]
    loaded = interop.load_arrays(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == np.asarray(array).dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], array)


def test_broken_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason=INSTALLED)
    interop.save_safetensors(tmp_path / "a.safetensors", {"a": np.ones(200)})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    for name, message in (
        ("cut.safetensors", r"cut\.safetensors is no whole safetensors file"),
        ("a.npz", r"expected one of \.safetensors, \.pt, \.pth"),
        ("a", r"expected one of \.safetensors, \.pt, \.pth"),
        ("a.keras", r"get_weights\(\) returns to layers_from_keras"),
        ("a.h5", r"get_weights\(\) returns to layers_from_keras"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            interop.load_arrays(tmp_path / name)
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("none.safetensors", "none", "folder.safetensors"):
        with pytest.raises(OSError, match=name):
            interop.load_arrays(tmp_path / name)


@pytest.mark.parametrize(
    ("library", "name", "cure"),
    [("safetensors", "a.safetensors", r"'lstm-jax\[interop\]'"), ("torch", "a.pt", "torch")],
)
def test_a_missing_library_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, name: str, cure: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"pip install {cure}"):
        interop.load_arrays(tmp_path / name)


@pytest.mark.slow
def test_pytorch_s_files_give_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason=INSTALLED)
    module = torch.nn.LSTM(3, 4)
    state = module.state_dict()
    for name, content in (("a.pt", state), ("b.pth", {"state_dict": state, "epoch": 3})):
        torch.save(content, tmp_path / name)
        found = interop.layers_from_pytorch(interop.load_arrays(tmp_path / name))
        assert_same_bits(found, interop.layers_from_pytorch(state))
    plain = interop.language_model_to_plain(draw_model("lstm", 1, False, "embedding")[1])
    torch.save({name: torch.from_numpy(a) for name, a in plain.items()}, tmp_path / "c.pt")
    found = interop.language_model_from_plain(interop.load_arrays(tmp_path / "c.pt"))
    assert_same_bits(interop.language_model_to_plain(found), plain)
    ones = torch.ones(16, 3)
    for odd in (ones.to_sparse(), ones.to("meta"), ones.to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match="weight_ih_l0 is a tensor of torch"):
            interop.layers_from_pytorch(state | {"weight_ih_l0": odd})
    (tmp_path / "noise.pt").write_bytes(b"nothing of PyTorch's")
    for name, content, message in (
        ("noise", None, "is no file of tensors alone"),
        ("module", module, "is no file of tensors alone"),
        ("tensor", torch.ones(2), "holds a Tensor; expected a state_dict"),
        ("epoch", {"epoch": 3, "model": {}}, "holds epoch, model, no tensors"),
        ("numbers", {1: torch.ones(2)}, "holds 1, no tensors by name"),
    ):
        if content is not None:
            torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=message):
            interop.load_arrays(tmp_path / f"{name}.pt")

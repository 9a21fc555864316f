"""Files of weights that `convert` is given."""

from __future__ import annotations

import io
import json
import struct
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
from broken import broken_bytes, broken_json, json_bytes, perhaps_broken, rarely
from hypothesis import given
from hypothesis import strategies as st
from law import Surface, many

from lstm_jax.cli.main import run as run_a_command
from lstm_jax.interop.files import load_safetensors

convert_command = partial(run_a_command, "convert")

DTYPES = ("F32", "F64", "F16", "BF16", "I32", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "F4", "C64", "?")
NAMES = ("rnn.weight_ih_l999999999", "rnn.weight_ih_l" + "9" * 5_000, "rnn.weight_ih_l\u0663",
         "rnn.weight_ih_l0_reverse", "layers/\u0663/w_x", "layers/00/w_x", "layers/0/forward/w_x",
         "layers/0/b_hn", "layers/" + "9" * 5_000 + "/w_x", "layers/0", "output/b", "embedding",
         "decoder.", "decoder.bias", "encoder.weight", "", "__metadata__", "\0",
         "a" * 20_000)  # fmt: skip
SHAPES: tuple[list[int], ...] = ([], [0], [0, 0], [1], [2**62, 4], [2**32, 2**32], [-1, 3],
                                 [1] * 70, [12, 3], [3, 12])  # fmt: skip
OPTIONS = (["--to", "plain"], ["--to", "pytorch"], ["--prefix", "rnn."], ["--prefix", ""],
           ["--prefix", "\ud800"], ["--step", "3"], ["--rnn", ""], ["--decoder", ""],
           ["--encoder", "decoder"], ["--identity-encoder"], ["--overwrite"])  # fmt: skip

Arrays = dict[str, np.ndarray[Any, Any]]


@lru_cache
def layouts() -> list[Arrays]:
    """Layers and models, by PyTorch's names and by our own."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype(np.float32)

    found: list[Arrays] = []
    for size in (3, 9, 12):
        kinds = {"weight_ih_l0": draw(size, 5), "weight_hh_l0": draw(size, 3)}
        kinds |= {"bias_ih_l0": draw(size), "bias_hh_l0": draw(size)}
        decoder = {"decoder.weight": draw(5, 3), "decoder.bias": draw(5)}
        plain = {"layers/0/w_x": draw(5, size), "layers/0/w_h": draw(3, size)}
        plain |= {"layers/0/b": draw(size)}
        found += [kinds, {f"rnn.{name}": array for name, array in kinds.items()} | decoder]
        found += [plain, plain | {"output/w": draw(3, 5), "output/b": draw(5)}]
    return found


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A file with another name, dtype, shape or offset in its header, or broken."""
    header: Any = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in draw(st.sampled_from(layouts())).items():
        ends = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": ends}
        data += array.tobytes()
    header = draw(rarely(_other_headers(header), st.just(header), 5))
    packed = draw(json_bytes(header))
    length = draw(rarely(st.just(len(packed)), st.sampled_from((0, 2**40, 2**64 - 1))))
    content = struct.pack("<Q", length) + packed + data
    return draw(rarely(st.just(content), broken_bytes(content), 5))


@st.composite
def _other_headers(draw: st.DrawFn, header: dict[str, Any]) -> Any:
    header = json.loads(json.dumps(header))
    name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
    match draw(st.integers(0, 4)):
        case 0:
            header[draw(st.sampled_from(NAMES))] = header.pop(name)
        case 1:
            header[name]["dtype"] = draw(st.sampled_from(DTYPES))
        case 2:
            header[name]["shape"] = draw(st.sampled_from(SHAPES))
        case 3:  # as many bytes, in another shape or type: the file itself is valid
            first, end = header[name]["data_offsets"]
            size = end - first
            header[name] |= draw(
                st.sampled_from(
                    (
                        {"dtype": "U8", "shape": [size]},
                        {"dtype": "F16", "shape": [size // 2]},
                        {"dtype": "BF16", "shape": [1, size // 2]},
                        {"dtype": "F64", "shape": [size // 8]},
                        {"shape": [size // 4, 1]},
                        {"shape": [1, size // 4]},
                        {"shape": [size // 4, 1, 1]},
                    )
                )
            )
        case _:
            return draw(broken_json(header))
    return header


options = rarely(st.just([]), st.sampled_from(OPTIONS), 3)


@many
@given(
    safetensors_files(),
    rarely(st.just(".safetensors"), st.sampled_from((".npz", ".npy", ""))),
    options,
)
def test_safetensors(surface: Surface, content: bytes, suffix: str, options: list[str]) -> None:
    _convert(surface, f"weights{suffix}", content, options)


@lru_cache
def pytorch_files() -> list[bytes]:
    import torch

    states: list[Any] = [
        {name: torch.from_numpy(array) for name, array in layout.items()} for layout in layouts()
    ]
    states += [{"state_dict": states[0]}, [1, 2], torch.zeros(3), {"a": "b"}, {1: states[0]}]
    states.append({"weight_ih_l0": torch.zeros(2, 2).to_sparse()})
    states.append({"weight_ih_l0": torch.zeros(12, 5, dtype=torch.complex64)})
    states.append({"weight_ih_l0": torch.zeros(12, 5, device="meta")})
    found = []
    for state in states:
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
            found.append(buffer.getvalue())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
@many
@given(
    st.deferred(lambda: st.sampled_from(pytorch_files()).flatmap(perhaps_broken)),
    st.sampled_from(("weights.pt", "weights.pth")),
    options,
)
def test_files_of_pytorch(surface: Surface, content: bytes, name: str, options: list[str]) -> None:
    """PyTorch's restricted reader is what they meet first."""
    pytest.importorskip("torch")
    _convert(surface, name, content, options)


def _convert(surface: Surface, name: str, content: bytes, options: list[str]) -> None:
    with surface.case({name: content}, writes="out.safetensors") as place:
        target = place / "out.safetensors"
        convert_command([str(place / name), str(target), *options], "convert")
        assert load_safetensors(target), "nothing was written"

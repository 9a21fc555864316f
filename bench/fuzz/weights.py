"""Files of weights that `python -m lstm_jax.interop convert` is given."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.fuzz.mutations import broken_bytes, broken_json, json_bytes
from bench.fuzz.trial import require, require_only
from lstm_jax.cli.convert import convert_command
from lstm_jax.interop.files import load_safetensors

_DTYPES = ("F32", "F64", "F16", "BF16", "I32", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "F4", "C64", "?")
_NAMES = (
    "rnn.weight_ih_l999999999",
    "rnn.weight_ih_l" + "9" * 5_000,
    "rnn.weight_ih_l\u0663",
    "rnn.weight_ih_l0_reverse",
    "layers/\u0663/w_x",
    "layers/00/w_x",
    "layers/0/forward/w_x",
    "layers/0/b_hn",
    "layers/" + "9" * 5_000 + "/w_x",
    "layers/0",
    "output/b",
    "embedding",
    "decoder.",
    "decoder.bias",
    "encoder.weight",
    "",
    "__metadata__",
    "\0",
    "a" * 20_000,
)
_SHAPES: tuple[list[int], ...] = (
    [],
    [0],
    [0, 0],
    [1],
    [2**62, 4],
    [2**32, 2**32],
    [-1, 3],
    [1] * 70,
    [12, 3],
    [3, 12],
)
_OPTIONS = (
    ["--to", "plain"],
    ["--to", "pytorch"],
    ["--prefix", "rnn."],
    ["--prefix", ""],
    ["--prefix", "\ud800"],
    ["--step", "3"],
    ["--rnn", ""],
    ["--decoder", ""],
    ["--encoder", "decoder"],
    ["--identity-encoder"],
    ["--overwrite"],
)


@lru_cache
def layouts() -> list[dict[str, np.ndarray[Any, Any]]]:
    """Layers and models, by PyTorch's names and by our own."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(size=shape).astype(np.float32)

    found: list[dict[str, np.ndarray[Any, Any]]] = []
    for gates in (1, 3, 4):
        kinds = {"weight_ih_l0": draw(gates * 3, 5), "weight_hh_l0": draw(gates * 3, 3)}
        kinds |= {"bias_ih_l0": draw(gates * 3), "bias_hh_l0": draw(gates * 3)}
        found.append(kinds)
        decoder = {"decoder.weight": draw(5, 3), "decoder.bias": draw(5)}
        found.append({f"rnn.{name}": array for name, array in kinds.items()} | decoder)
        plain = {"layers/0/w_x": draw(5, gates * 3), "layers/0/w_h": draw(3, gates * 3)}
        plain |= {"layers/0/b": draw(gates * 3)}
        found.append(plain)
        found.append(plain | {"output/w": draw(3, 5), "output/b": draw(5)})
    return found


def hostile_safetensors(rng: Random) -> bytes:
    """A file with another name, dtype, shape or offset in its header, or broken."""
    header, data = _entries(rng.choice(layouts()))
    if rng.random() < 0.8:
        header = _other_entries(rng, header)
    packed = json_bytes(rng, header)
    length = len(packed) if rng.random() < 0.95 else rng.choice((0, 2**40, 2**64 - 1))
    content = struct.pack("<Q", length) + packed + data
    return broken_bytes(rng, content) if rng.random() < 0.2 else content


@dataclass(frozen=True)
class Safetensors:
    """`.safetensors` files, and others under that name."""

    name: str = "safetensors"
    share: int = 4

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        suffix = ".safetensors" if rng.random() < 0.95 else rng.choice((".npz", ".npy", ""))
        _convert(rng, place, f"weights{suffix}", hostile_safetensors(rng))


@dataclass(frozen=True)
class PytorchFiles:
    """`.pt` files; PyTorch's restricted reader is what they meet first."""

    name: str = "PyTorch's .pt"
    share: int = 1

    @cached_property
    def _valid(self) -> list[bytes]:
        import torch

        found = []
        states: list[Any] = [
            {name: torch.from_numpy(array) for name, array in layout.items()}
            for layout in layouts()
        ]
        states += [{"state_dict": states[0]}, [1, 2], torch.zeros(3), {"a": "b"}, {1: states[0]}]
        states.append({"weight_ih_l0": torch.zeros(2, 2).to_sparse()})
        states.append({"weight_ih_l0": torch.zeros(12, 5, dtype=torch.complex64)})
        states.append({"weight_ih_l0": torch.zeros(12, 5, device="meta")})
        for state in states:
            for is_zip in (True, False):
                buffer = io.BytesIO()
                torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
                found.append(buffer.getvalue())
        return found

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        content = rng.choice(self._valid)
        if rng.random() < 0.8:
            content = broken_bytes(rng, content)
        _convert(rng, place, rng.choice(("weights.pt", "weights.pth")), content)


def _convert(rng: Random, place: Path, name: str, content: bytes) -> None:
    source, target = place / name, place / "out.safetensors"
    source.write_bytes(content)
    options = rng.choice(_OPTIONS) if rng.random() < 0.4 else []
    try:
        convert_command([str(source), str(target), *options], "convert")
        require(bool(load_safetensors(target)), "nothing was written")
        require_only(place, name, target.name)
    except (ValueError, OSError):
        require_only(place, name)
        raise
    finally:
        source.unlink()
        target.unlink(missing_ok=True)


def _entries(arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": ends}
        data += raw
    return header, data


def _other_entries(rng: Random, header: dict[str, Any]) -> Any:
    header = json.loads(json.dumps(header))
    name = rng.choice([name for name in header if name != "__metadata__"])
    match rng.randrange(5):
        case 0:
            header[rng.choice(_NAMES)] = header.pop(name)
        case 1:
            header[name]["dtype"] = rng.choice(_DTYPES)
        case 2:
            entry = header[name]
            entry["shape"] = rng.choice(_SHAPES)
        case 3:
            # As many numbers, in another shape or type: the file itself is valid.
            first, end = header[name]["data_offsets"]
            size = end - first
            header[name] |= rng.choice(
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
        case _:
            return broken_json(rng, header)
    return header

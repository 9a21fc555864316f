"""Files of a header and what it describes, all of which is a tree of JSON values before."""

import gzip
import io
import struct
import tarfile
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from broken import Choose, as_json, encoded


def archive_trees() -> list[dict[str, Any]]:
    def member(name: str, text: str = "", **others: Any) -> dict[str, Any]:
        plain = {"name": name, "text": text, "more": 0, "type": "0", "link": "", "pax": {}}
        return plain | {"format": tarfile.GNU_FORMAT} | others

    kept = [member("aclImdb/train/pos/0_1.txt", "A good film."),
            member("aclImdb/train/neg/1_1.txt", "Très mauvais !"),
            member("aclImdb/train/pos/2_1.txt", "A good film.")]  # fmt: skip
    names = ("../../train/pos/1_9.txt", "/train/pos/1_9.txt", "train/pos/../../../../x.txt",
             "a/" * 120 + "train/pos/1_9.txt", "train/pos/1_9.txt\n", "train/pos/.hidden.txt",
             "train/pos/" + "9" * 6_000 + ".txt", "TRAIN/POS/1_9.TXT")  # fmt: skip
    odd = [[member(name, "bad")] for name in names]
    links = ("/etc/passwd", "../../..", "train/pos/0_1.txt")
    kinds = "01234567LKSxg?"
    odd += [[member("train/pos/5_5.txt", type=kind, link=link)] for kind in kinds for link in links]
    pax = {"path": "x", "size": "1", "GNU.sparse.map": "1,2,3", "GNU.sparse.size": "1"}
    odd.append([member("train/pos/5_5.txt", "good", pax=pax, format=tarfile.PAX_FORMAT)])
    return [
        {"members": kept + more, "packed": packed, "bombs": bombs}
        for more in ([], *odd)
        for packed, bombs in ((1, 0), (0, 0), (1, 1), (2, 0))
    ]


def archive(tree: Any, choose: Choose) -> bytes:
    content = b""
    for member in tree["members"]:
        info, text = tarfile.TarInfo(member["name"]), encoded(member["text"], choose)
        info.size, info.type = len(text) + member["more"], member["type"].encode()[:1]
        info.linkname, info.pax_headers = member["link"], member["pax"]
        header = info.tobuf(member["format"], "utf-8", "surrogatepass")
        content += header + text + bytes(-len(text) % 512)
    content += bytes(1024)
    for _ in range(min(tree["packed"], 3)):
        content = gzip.compress(content, 1, mtime=0)
    return content + gzip.compress(bytes(1 << 20), 9, mtime=0) * min(tree["bombs"], 9)


@lru_cache
def layouts() -> list[dict[str, Any]]:
    """Layers and models, by PyTorch's names and by our own."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    found: list[dict[str, Any]] = []
    for size in (12, 9, 3):
        kinds = {"weight_ih_l0": draw(size, 5), "weight_hh_l0": draw(size, 3)}
        kinds |= {"bias_ih_l0": draw(size), "bias_hh_l0": draw(size)}
        decoder = {"decoder.weight": draw(5, 3), "decoder.bias": draw(5)}
        plain = {"layers/0/w_x": draw(5, size), "layers/0/w_h": draw(3, size)}
        plain |= {"layers/0/b": draw(size)}
        found += [kinds, {f"rnn.{name}": array for name, array in kinds.items()} | decoder]
        found += [plain, plain | {"output/w": draw(3, 5), "output/b": draw(5)}]
    return found


ODD_NAMES = ("rnn.weight_ih_l999999999", "rnn.weight_ih_l" + "9" * 5_000, "rnn.weight_ih_l\u0663",
             "rnn.weight_ih_l0_reverse", "layers/\u0663/w_x", "layers/00/w_x", "layers/0/b_hn",
             "layers/0/forward/w_x", "layers/" + "9" * 5_000 + "/w_x", "layers/0", "embedding",
             "decoder.", "encoder.weight", "__metadata__")  # fmt: skip
"""One array has such a name."""
OTHER_TYPES: tuple[dict[str, Any], ...] = (
    *({"dtype": name} for name in ("F8_E4M3", "F8_E5M2", "F4", "C64", "BOOL", "?")),
    *({"shape": shape} for shape in ([], [2**62, 4], [2**32, 2**32], [1] * 70, [12, 5], [60, 1])),
    {"dtype": "F16", "shape": [120]},
    {"dtype": "BF16", "shape": [1, 120]},
    {"dtype": "F64", "shape": [30]},
)
"""Of 60 numbers of float32: some are as many bytes, so that the file itself is valid."""


@lru_cache
def safetensors_trees() -> list[dict[str, Any]]:
    found = []
    for layout in layouts():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, array in layout.items():
            places = [end, end + array.nbytes]
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": places}
            end += array.nbytes
        data = b"".join(array.tobytes() for array in layout.values()).hex()
        found.append({"header": header, "data": data, "more": 0})
        first = next(iter(layout))
        odd = [{name if key == first else key: header[key] for key in header} for name in ODD_NAMES]
        odd += [header | {first: header[first] | other} for other in OTHER_TYPES]
        found += [{"header": each, "data": data, "more": 0} for each in odd if first[0] == "w"]
    return found


def safetensors(tree: Any, choose: Choose) -> bytes:
    header = as_json(tree["header"], choose)
    return struct.pack("<Q", len(header) + tree["more"]) + header + bytes.fromhex(tree["data"])


@lru_cache
def pytorch_files() -> list[bytes]:
    torch = pytest.importorskip("torch")
    states: list[Any] = [
        {name: torch.from_numpy(array) for name, array in layout.items()} for layout in layouts()
    ]
    states += [{"state_dict": states[0]}, [1, 2], torch.zeros(3), {"a": "b"}, {1: states[0]}]
    states.append({1: torch.zeros(3)})
    states += [
        states[0] | {"weight_ih_l0": odd}
        for odd in (
            torch.zeros(12, 5).to_sparse(),
            *(torch.zeros(12, 5).to(dtype) for dtype in (torch.complex64, torch.float8_e4m3fn)),
            torch.zeros(12, 5, device="meta"),
        )
    ]
    found = []
    for state in states:
        for is_zip in (True, False):
            buffer = io.BytesIO()
            torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
            found.append(buffer.getvalue())
    return found

"""All files that are read: what is valid, how it is made a file, and what an accepted one holds."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from broken import broken_bytes, broken_tree, json_bytes, rarely
from hypothesis import strategies as st

from lstm_jax.cli.convert import convert_command
from lstm_jax.cli.writing import file_lines
from lstm_jax.interop.files import load_safetensors
from lstm_jax.sampling.stops import make_stops
from lstm_jax.settings import flat
from lstm_jax.systems import PRESETS, from_dict, to_dict
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.poems import build_poem_vocabulary, read_poems
from lstm_jax.systems.reviews import load_vectors
from lstm_jax.systems.writer import blanks_template, joined, prompt_template
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_published_word_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    encode_review,
    first_characters,
    lanes,
    padded_lanes,
    published_shakespeare_words,
    read_reviews,
    read_text,
    read_vectors,
    review_words,
    words,
)
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.run import RunFolder, read_description, refuse_changes, refuse_damaged_files

PROSE = (
    "The quick brown fox — it's well-known — jumps over 13 lazy dogs.\n"
    "« Où es-tu ? » 分开 不分开\n\n<br />Don’t stop: naïve façades, e\u0301te\u0301.\n"  # noqa: RUF001
)
POEMS = "春:春眠不觉晓\n夜：夜来风雨声\nempty:\nno colon\n靜夜思:床前明月光，疑是地上霜。\n"  # noqa: RUF001
VOCABULARIES = (
    build_char_vocabulary(PROSE),
    build_char_vocabulary(PROSE, unknown=True),
    build_word_vocabulary(words(PROSE)),
    build_poem_vocabulary(read_poems(POEMS).poems),
    build_review_vocabulary([["the", "film", "was", "good", "été", "it's"]]),
)
Choose = Callable[[Sequence[Any]], Any]
"""One of several: which, Hypothesis says."""


class Surface(NamedTuple):
    """A kind of file.

    Attributes:
        file: its name.
        trees: valid ones, of which parts are replaced; of a text or of bytes no part has a name.
        pack: (tree, which of several forms) -> the file's content.
        read: reads the file, in one of several ways, and asserts what is true if it is accepted.
        writes: the file that reading may make or change.
        beside: other files.
    """

    file: str
    trees: Callable[[], Sequence[Any]]
    pack: Callable[[Any, Choose], bytes]
    read: Callable[[Path, Choose], object]
    writes: str | None = None
    beside: Mapping[str, bytes] = {}


UNMAKEABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error,
              csv.Error)  # fmt: skip
"""What is raised where nobody can make such a file."""


@st.composite
def contents(draw: st.DrawFn, surface: Surface, whole: int = 3) -> bytes:
    """The content of a file in which something is odd, or its bytes are broken."""
    choose: Choose = lambda options: draw(st.sampled_from(options))  # noqa: E731
    tree = choose(surface.trees())
    content = surface.pack(tree, choose)
    if isinstance(tree, str | bytes):
        return draw(broken_bytes(content))
    with contextlib.suppress(*UNMAKEABLE):
        content = surface.pack(draw(broken_tree(tree)), choose)
    return draw(rarely(st.just(content), broken_bytes(content), whole))


def encoded(text: str, choose: Choose) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def as_json(value: Any, choose: Choose) -> bytes:
    return json_bytes(value, choose((None, 2)), choose((1, 1, 1, 2)), choose((50, 1_000, 100_000)))


# Texts


def text_file(path: Path, choose: Choose) -> None:
    as_is = choose((False, True))
    text = read_text(path, as_is=as_is)
    assert as_is or "\r" not in text
    vocabulary = build_char_vocabulary(text, unknown=choose((False, True)))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    sizes = {"batch_size": choose((1, 2, 7)), "sequence_length": choose((3, 1, 50))}
    heldout = padded_lanes(ids, **sizes)
    assert int(heldout.mask.sum()) == len(ids) - 1, "a held-out token was lost"
    lanes(ids, **sizes)


def tokens(path: Path, choose: Choose) -> None:
    text = path.read_bytes().decode(errors="surrogateescape")
    found, reviewed = words(text), review_words(text)
    assert words(" ".join(found)) == found, "words are split again"
    assert review_words(" ".join(reviewed)) == reviewed, "review words are split again"
    size, flag = choose((1, 2, 9)), choose((False, True))
    match choose(range(5)):
        case 0:
            vocabulary = build_word_vocabulary(found, min_count=size)
            assert len(vocabulary.encode(text)) == len(found), "a word was lost"
        case 1:
            vocabulary = build_review_vocabulary([reviewed], 8 if flag else 10_000)
            encode_review(vocabulary, reviewed, size)
        case 2:
            kept = published_shakespeare_words(text, skip=0 if flag else 7_675)
            build_published_word_vocabulary(kept, more_than=size - 1)
        case 3:
            build_char_vocabulary(first_characters(text, None if flag else size, line_ends="space"))
        case _:
            build_char_vocabulary(PROSE, unknown=flag).encode_prompt(text)


def poem_file(path: Path, choose: Choose) -> None:
    length, flags = choose((50, 1, 2)), {"drop_empty": choose((True, False))}
    flags["drop_repeated"] = choose((True, False))
    found = read_poems(read_text(path), length=length, keep=choose(("first", "last")), **flags)
    assert all(len(poem) <= length for poem in found.poems)
    vocabulary = build_poem_vocabulary(found.poems)
    assert all(vocabulary.decode(vocabulary.encode(poem)) == poem for poem in found.poems)


def prompts(path: Path, choose: Choose) -> None:
    vocabulary, length, flag = choose(VOCABULARIES), choose((1, 30)), choose((False, True))
    for number, line in file_lines(path)[:20]:
        if number % 2:
            template = prompt_template(vocabulary, line, length)
        else:
            template = blanks_template(vocabulary, line, feed_unknown=flag)
        assert len(template.ids) == len(template.shown), "a place was lost"
        shown = joined(vocabulary, (each or "?" for each in template.shown), 5)
        assert "?" in shown or None not in template.shown
        make_stops(len(vocabulary), [vocabulary.encode_prompt(line[:9]).tolist()])


def vectors_of_words() -> list[list[list[str]]]:
    names = ("the", "film", "good", "été", "other", ".")
    tables = [
        [[word, *(f"{(row - 2.5) / (1 + at):.4f}" for at in range(width))]
         for row, word in enumerate(names)]
        for width in (3, 1, 50)
    ]  # fmt: skip
    return [*tables, [["6", "3"], *tables[0]]]


def word_vectors(path: Path, choose: Choose) -> None:
    missing = choose(("drawn", "zeros"))
    found = read_vectors(path, VOCABULARIES[-1], seed=3, missing=missing)
    assert len(found.table) == len(VOCABULARIES[-1])
    assert np.isfinite(found.table).all()
    assert not found.table[0].any(), "the padding has a vector"


def labelled_texts() -> list[list[list[str]]]:
    heads = (["id", "text", "label"], ["id", "Review", "SENTIMENT"])
    kinds = (("0", "1"), ("neg", "pos"))
    return [
        [head, *([str(row), PROSE[row : row + 60], kind[row % 2]] for row in range(4))]
        for head in heads
        for kind in kinds
    ]


def table(rows: Any, choose: Choose) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=choose((",", "\t", ";"))).writerows(rows)
    return encoded(file.getvalue(), choose)


def reviews(path: Path, choose: Choose) -> None:
    found = read_reviews(path).training
    assert set(found.labels.tolist()) == {0, 1}
    assert len(found.texts) == len(found.labels)
    assert all(len(text) <= 2**20 for text in found.texts)


# Archives, arrays, weights: what a header says is a part of the tree


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
    bombs: list[tuple[str, str]] = [("", ""), ("gz", ""), ("gz", "bomb"), ("gzgz", "")]
    return [{"members": kept + more, "packed": packed, "after": after}
            for more in ([], *odd) for packed, after in bombs]  # fmt: skip


def archive(tree: Any, choose: Choose) -> bytes:
    content = b""
    for member in tree["members"]:
        info, text = tarfile.TarInfo(member["name"]), encoded(member["text"], choose)
        info.size, info.type = len(text) + member["more"], member["type"].encode()[:1]
        info.linkname, info.pax_headers = member["link"], member["pax"]
        header = info.tobuf(member["format"], "utf-8", "surrogatepass")
        content += header + text + bytes(-len(text) % 512)
    content += bytes(1024)
    for _ in range(tree["packed"].count("gz")):
        content = gzip.compress(content, 1)
    after = gzip.compress(bytes(1 << 20), 9) if tree["after"] == "bomb" else b""
    return content + after


def npy_trees() -> list[dict[str, Any]]:
    header = {"descr": "<f4", "fortran_order": False, "shape": [4, 3], "version": 1, "more": 0}
    odd = [{"descr": kind} for kind in ("<f8", "|O", "<M8", "|V0", "<f4 ", None)]
    shapes = ([400_000_000_000, 3], [-4, -3], [12], [2, 2, 3], [0, 3])
    odd += [{"shape": shape} for shape in shapes] + [{"fortran_order": True}, {"version": 9}]
    return [header | each for each in ({}, *odd)]


def npy(tree: Any, choose: Choose) -> bytes:
    shape = tuple(tree["shape"]) if isinstance(tree["shape"], list) else tree["shape"]
    names = {"descr": tree["descr"], "fortran_order": tree["fortran_order"], "shape": shape}
    header = repr(names).encode(errors="surrogatepass") + b"\n"
    length = struct.pack("<H", len(header) + tree["more"])
    values = np.linspace(-1, 1, 12).astype(tree["descr"] if tree["descr"] == "<f8" else "<f4")
    return b"\x93NUMPY" + bytes([tree["version"], 0]) + length + header + values.tobytes()


def vectors(path: Path, choose: Choose) -> None:
    found = load_vectors(path)
    assert (found.dtype, found.ndim) == (np.float32, 2)
    assert np.isfinite(found).all()


@lru_cache
def layouts() -> list[dict[str, Any]]:
    """Layers and models, by PyTorch's names and by our own."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    found: list[dict[str, Any]] = []
    for size in (3, 9, 12):
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
        others = {name: each for name, each in header.items() if name != first}
        odd = [{**others, name: header[first]} for name in ODD_NAMES]
        odd += [header | {first: header[first] | other} for other in OTHER_TYPES]
        found += [{"header": each, "data": data, "more": 0} for each in odd if len(layout) == 6]
    return found


def safetensors(tree: Any, choose: Choose) -> bytes:
    header = as_json(tree["header"], choose)
    return struct.pack("<Q", len(header) + tree["more"]) + header + bytes.fromhex(tree["data"])


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


def convert(path: Path, choose: Choose) -> None:
    options = ([], [], [], ["--to", "plain"], ["--to", "pytorch"], ["--prefix", "rnn."],
               ["--prefix", ""], ["--prefix", "\ud800"], ["--step", "3"], ["--rnn", ""],
               ["--decoder", ""], ["--encoder", "decoder"], ["--identity-encoder"],
               ["--overwrite"])  # fmt: skip
    target = path.with_name("out.safetensors")
    convert_command([str(path), str(target), *choose(options)], "convert")
    assert load_safetensors(target), "nothing was written"


# Files of a run


def vocabulary_file(path: Path, choose: Choose) -> None:
    found = Vocabulary.load(path)
    found.save(path)
    again = Vocabulary.load(path)
    assert (again, again.fingerprint()) == (found, found.fingerprint())
    assert found.decode(np.arange(len(found))) is not None


def described(preset: TrainConfig, **others: Any) -> dict[str, Any]:
    files = {"vocab.json": hashlib.sha256(b"{}").hexdigest()}
    data = {"sha256": "0" * 64, "about": "a text"}
    found = {"format": 2, "config": to_dict(preset), "data": data, "files": files}
    return found | {"written_by": {"lstm_jax": "0.1.0"}, **others}


def summed(description: dict[str, Any]) -> dict[str, Any]:
    """With a checksum that is right."""
    crc32 = zlib.crc32(json.dumps(description, sort_keys=True).encode())
    return description | {"crc32": crc32}


def config(tree: Any, choose: Choose) -> bytes:
    is_summed = isinstance(tree, dict) and choose((True, True, False))
    return as_json(summed(tree) if is_summed else tree, choose)


def require_types(config: Any) -> None:
    """Each setting is of the type of its default, where neither is None."""
    defaults = flat(to_dict(type(config)()))
    for name, value in flat(to_dict(config)).items():
        kind = type(defaults[name])
        kinds = (int, float) if kind is float else (kind,)
        assert None in (value, defaults[name]) or type(value) in kinds, f"{name} is {value!r:.99}"


def config_file(path: Path, choose: Choose) -> None:
    folder = RunFolder(path.parent)
    found: Any = read_description(folder).config
    assert from_dict(to_dict(found)) == found, "the settings do not survive JSON"
    json.dumps(to_dict(found), allow_nan=False)
    require_types(found)
    kept, given = flat(to_dict(found)), flat(json.loads(path.read_bytes())["config"])
    assert given.items() <= kept.items(), "a value was made another"
    refuse_damaged_files(folder)
    refuse_changes(folder, choose(PRESETS))


def rows(tree: Any, choose: Choose) -> bytes:
    return b"".join(as_json(row, choose).replace(b"\n", b"") + b"\n" for row in tree)


def metrics(path: Path, choose: Choose) -> None:
    content = path.read_bytes()
    assert all(type(row["step"]) is int for row in read_rows(path))
    log = MetricsLog(path, last_step=10)
    for aside in path.parent.glob("metrics.jsonl.damaged*"):  # lines that are no rows are kept
        assert aside.read_bytes() == content
        aside.unlink()
    log.append({"step": 12, "loss": 1.0})
    log.close()
    assert read_rows(path)[-1]["step"] == 12, "a row that was written cannot be read"


ROWS = [{"step": at, "epoch": 0.5, "loss": 3.1, "heldout_loss": None} for at in range(0, 20, 2)]
_OUT = "out.safetensors"
SURFACES = {
    "text files": Surface("text.txt", lambda: (PROSE, PROSE * 5), encoded, text_file),
    "tokenizers": Surface("text.txt", lambda: (PROSE,), encoded, tokens),
    "poem files": Surface("poems.txt", lambda: (POEMS,), encoded, poem_file),
    "prompts and templates": Surface(
        "lines.txt", lambda: (PROSE[:40], "The *o*\nfox jumps\n", "春**晓\n*\n"), encoded, prompts
    ),
    "word vector files": Surface(
        "vectors.txt",
        vectors_of_words,
        lambda rows, choose: encoded("\n".join(map(" ".join, rows)), choose),
        word_vectors,
    ),
    "review tables": Surface("reviews.csv", labelled_texts, table, reviews),
    "review archives": Surface("reviews.tar.gz", archive_trees, archive, reviews),
    "vectors npy": Surface("vectors.npy", npy_trees, npy, vectors),
    "vocab json": Surface(
        "vocab.json",
        lambda: [each.to_dict() for each in VOCABULARIES],
        as_json,
        vocabulary_file,
        "vocab.json",
    ),
    "config json": Surface(
        "config.json",
        lambda: list(map(described, PRESETS)),
        config,
        config_file,
        beside={"vocab.json": b"{}"},
    ),
    "metrics jsonl": Surface(
        "metrics.jsonl", lambda: (ROWS, ROWS[:1]), rows, metrics, "metrics.jsonl"
    ),
    "safetensors": Surface("weights.safetensors", safetensors_trees, safetensors, convert, _OUT),
    "files of pytorch": Surface(
        "weights.pt", pytorch_files, lambda content, _: content, convert, _OUT
    ),
}

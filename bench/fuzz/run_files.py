"""Files of a run folder, and what `sample.py` is given to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import types
import typing
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

from bench.fuzz.mutations import ODD_TEXTS, broken_bytes, broken_json, broken_text, json_bytes
from bench.fuzz.texts import POEMS, PROSE
from bench.fuzz.trial import require, require_only
from lstm_jax.cli.writing import file_lines
from lstm_jax.presets import PRESETS
from lstm_jax.sampling.stops import make_stops
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_poem_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    read_poems,
    words,
)
from lstm_jax.training.config import from_dict, to_dict
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.run import (
    RunFolder,
    read_description,
    refuse_changes,
    refuse_damaged_files,
)
from lstm_jax.training.systems.reviews import load_vectors
from lstm_jax.training.writing import blanks_template, joined, prompt_template


def vocabularies() -> tuple[Vocabulary, ...]:
    """One of each kind."""
    return (
        build_char_vocabulary(PROSE),
        build_char_vocabulary(PROSE, unknown=True),
        build_word_vocabulary(words(PROSE)),
        build_poem_vocabulary(read_poems(POEMS).poems),
        build_review_vocabulary([["a", "good", "film"]]),
    )


@dataclass(frozen=True)
class VocabularyFiles:
    """`vocab.json`."""

    name: str = "vocab.json"
    share: int = 10

    @cached_property
    def _valid(self) -> list[dict[str, Any]]:
        return [vocabulary.to_dict() for vocabulary in vocabularies()]

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        path = place / "vocab.json"
        content = json_bytes(rng, broken_json(rng, rng.choice(self._valid)))
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.4 else content)
        found = Vocabulary.load(path)
        found.save(path)
        again = Vocabulary.load(path)
        require(again == found, "what is saved is not what is loaded")
        require(again.fingerprint() == found.fingerprint(), "the fingerprint has changed")
        require(found.decode(np.arange(len(found))) is not None, "its tokens cannot be shown")
        require_only(place, "vocab.json")


@dataclass(frozen=True)
class ConfigFiles:
    """`config.json`, and the files that it names; half of them with a checksum that is right."""

    name: str = "config.json"
    share: int = 12

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        folder = RunFolder(place)
        folder.vocabulary.write_bytes(b"{}")
        preset = rng.choice(PRESETS)
        described = broken_json(rng, _described(preset))
        if isinstance(described, dict) and rng.random() < 0.7:
            if rng.random() < 0.2:
                _name_odd_file(rng, described)
            described["crc32"] = zlib.crc32(json.dumps(described, sort_keys=True).encode())
        content = json_bytes(rng, described)
        folder.config.write_bytes(broken_bytes(rng, content) if rng.random() < 0.3 else content)
        found = read_description(folder)
        config: Any = found.config
        require(from_dict(to_dict(config)) == config, "the settings do not survive JSON")
        json.dumps(to_dict(config), allow_nan=False)
        require_types(config)
        refuse_damaged_files(folder)
        refuse_changes(folder, preset)


def require_types(config: Any) -> None:
    """Raises BrokenLawError where a dataclass holds what its annotations don't allow."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            require_types(value)
        else:
            require(_fits(value, hints[field.name]), f"{field.name} is {value!r:.100}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _described(preset: Any) -> dict[str, Any]:
    return {
        "format": 2,
        "config": to_dict(preset),
        "data": {"sha256": "0" * 64, "about": "a text"},
        "files": {"vocab.json": hashlib.sha256(b"{}").hexdigest()},
        "written_by": {"lstm_jax": "0.1.0"},
    }


def _name_odd_file(rng: Random, described: dict[str, Any]) -> None:
    name = rng.choice(("../secret", "/etc/passwd", "/dev/zero", "/dev/tty", ".", "", *ODD_TEXTS))
    described["files"] = {name: "0" * 64}


@dataclass(frozen=True)
class MetricsFiles:
    """`metrics.jsonl`."""

    name: str = "metrics.jsonl"
    share: int = 6

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        rows: list[Any] = [
            {"step": step, "epoch": step / 7, "loss": 3.1, "heldout_loss": None}
            for step in range(0, rng.choice((2, 30)), 2)
        ]
        rows[rng.randrange(len(rows))] = broken_json(rng, rows[0])
        content = b"\n".join(json_bytes(rng, row).replace(b"\n", b"") for row in rows) + b"\n"
        path = place / "metrics.jsonl"
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.5 else content)
        require(all(type(row["step"]) is int for row in read_rows(path)), "a step is no integer")
        log = MetricsLog(path, last_step=10)
        log.append({"step": 12, "loss": 1.0})
        log.close()
        require(read_rows(path)[-1]["step"] == 12, "a row that was written cannot be read")
        require_only(place, "metrics.jsonl", "metrics.jsonl.damaged")


@dataclass(frozen=True)
class VectorArrays:
    """`vectors.npy`."""

    name: str = "vectors.npy"
    share: int = 4

    @cached_property
    def _valid(self) -> dict[str, bytes]:
        table = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        found = {}
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "float32": table,
            "float64": table.astype(np.float64),
            "objects": np.array([{}, []], dtype=object),
            "records": np.zeros(2, [("a", "<f4"), ("b", "O")]),
            "fortran": np.asfortranarray(table),
        }
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            found[name] = buffer.getvalue()
        buffer = io.BytesIO()
        np.savez(buffer, table=table)
        return found | {"npz": buffer.getvalue()}

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        content = rng.choice(list(self._valid.values()) + [self._valid["float32"]] * 4)
        if rng.random() < 0.6:
            content = _other_header(rng, content)
        path = place / "vectors.npy"
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.5 else content)
        found = load_vectors(path)
        require(found.dtype == np.float32 and found.ndim == 2, "it is no table of float32")
        require(bool(np.isfinite(found).all()), "a number is not finite")
        require_only(place, "vectors.npy")


def _other_header(rng: Random, content: bytes) -> bytes:
    """Another shape, dtype or version, in a header that keeps its length where it can."""
    old, new = rng.choice(
        (
            (b"(4, 3), }" + b" " * 12, b"(400000000000, 3), }"),
            (b"(4, 3), }" + b" " * 12, b"(-4, -3), }         "),
            (b"(4, 3), }" + b" " * 12, b"(2**9, 3), }        "),
            (b"(4, 3), }" + b" " * 12, b"((((((4,)))))), 3)} "),
            (b"(4, 3), }" + b" " * 40, b"(" * 40),
            (b"(4, 3)", b"(4, 0)"),
            (b"(4, 3)", b"(4L,3)"),
            (b"(4, 3)", b"[4, 3]"),
            (b"'<f4'", b"'|O' "),
            (b"'<f4'", b"'<M8'"),
            (b"'<f4'", b"'|V0'"),
            (b"'<f4'", b"'<f4"),
            (b"'<f4'", b"None "),
            (b"NUMPY\x01\x00", b"NUMPY\x02\x00"),
            (b"NUMPY\x01\x00", b"NUMPY\x09\x09"),
            (b"v\x00{", b"\xff\xff{"),
        )
    )
    return content.replace(old, new.ljust(len(old)) if old.startswith(b"(") else new)


@dataclass(frozen=True)
class Prompts:
    """Files of prompts and templates, and stop texts."""

    name: str = "prompts, templates"
    share: int = 7

    @cached_property
    def _vocabularies(self) -> tuple[Vocabulary, ...]:
        return vocabularies()

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        vocabulary = rng.choice(self._vocabularies)
        text = broken_text(rng, rng.choice(("The *o*\nfox jumps\n", "春**晓\n*\n", PROSE[:40])))
        content = text.encode("utf-8", errors="surrogatepass")
        path = place / "lines.txt"
        path.write_bytes(broken_bytes(rng, content) if rng.random() < 0.4 else content)
        for _, line in file_lines(path)[:20]:
            if rng.random() < 0.5:
                template = prompt_template(vocabulary, line, rng.choice((1, 30)))
            else:
                feed_unknown = rng.random() < 0.5
                template = blanks_template(vocabulary, line, feed_unknown=feed_unknown)
            require(len(template.ids) == len(template.shown), "a place was lost")
            shown = joined(vocabulary, (each or "?" for each in template.shown), 5)
            require("?" in shown or None not in template.shown, "a place is not shown")
            make_stops(len(vocabulary), [vocabulary.encode_prompt(line[:9]).tolist()])
        require_only(place, "lines.txt")

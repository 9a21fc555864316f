"""All files that are read: what is valid, how it is made a file, and what an accepted one holds."""

import contextlib
import csv
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from broken import Choose, as_json, broken_bytes, broken_tree, encoded, rarely
from containers import archive, archive_trees, pytorch_files, safetensors, safetensors_trees
from hypothesis import strategies as st

from lstm_jax.cli.main import run as run_a_command
from lstm_jax.cli.sample import file_lines
from lstm_jax.interop.files import load_safetensors
from lstm_jax.sampling.stops import make_stops
from lstm_jax.settings import flat
from lstm_jax.systems import from_dict, presets, to_dict
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.corpus import CorpusConfig, first_characters
from lstm_jax.systems.poems import build_poem_vocabulary, read_poems
from lstm_jax.systems.published import published_vocabulary, published_words
from lstm_jax.systems.writer import blanks_template, pieces, prompt_template
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    encode_review,
    lanes,
    padded_lanes,
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


class Surface(NamedTuple):
    """A kind of file: valid trees, of which parts are replaced, or texts or bytes as a whole.

    `pack` makes a tree the file's content, in one of several forms. `read` reads the file, in one
    of several ways, asserts what is true if it is accepted, and may make or change what it
    `writes`.
    """

    file: str
    trees: Callable[[], Sequence[Any]]
    pack: Callable[[Any, Choose], bytes]
    read: Callable[[Path, Choose], object]
    writes: str | None = None
    beside: Mapping[str, bytes] = {}


@st.composite
def contents(draw: st.DrawFn, surface: Surface) -> bytes:
    """The content of a file in which something is odd, or its bytes are broken."""
    choose: Choose = lambda options: draw(st.sampled_from(options))  # noqa: E731
    tree = choose(surface.trees())
    content = surface.pack(tree, choose)
    if isinstance(tree, str | bytes):
        return draw(rarely(broken_bytes(content), st.just(content), 4))
    with contextlib.suppress(Exception):  # nobody can make such a file
        content = surface.pack(draw(broken_tree(tree)), choose)
    return draw(rarely(st.just(content), broken_bytes(content), 3))


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
            kept = published_words(text, skip=0 if flag else 7_675)
            published_vocabulary(kept, min_count=size)
        case 3:
            config = CorpusConfig(characters=None if flag else size, line_ends="space")
            build_char_vocabulary(first_characters(text, config))
        case _:
            build_char_vocabulary(PROSE, unknown=flag).encode_prompt(text)


def poem_file(path: Path, choose: Choose) -> None:
    length, keep, drop_unfit = choose((50, 1, 2)), choose(("first", "last")), choose((True, False))
    found = read_poems(read_text(path), length=length, keep=keep, drop_unfit=drop_unfit)
    assert all(len(poem) <= length for poem in found.poems)
    vocabulary = build_poem_vocabulary(found.poems)
    assert all(vocabulary.decode(vocabulary.encode(poem)) == poem for poem in found.poems)


PROMPTS = (PROSE[:40], "The *o*\nfox jumps\n", "春**晓\n*\n")


def prompts(path: Path, choose: Choose) -> None:
    vocabulary, length, flag = choose(VOCABULARIES), choose((1, 30)), choose((False, True))
    for number, line in file_lines(path)[:20]:
        if number % 2:
            template = prompt_template(vocabulary, line, length)
        else:
            template = blanks_template(vocabulary, line, feed_unknown=flag)
        assert len(template.ids) == len(template.shown), "a place was lost"
        shown = "".join(pieces(vocabulary, (each or "?" for each in template.shown), 5))
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


def spaced(rows: Any, choose: Choose) -> bytes:
    return encoded("\n".join(map(" ".join, rows)), choose)


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


def convert(path: Path, choose: Choose) -> None:
    options = ([], [], [], ["--to", "plain"], ["--to", "pytorch"], ["--prefix", "rnn."],
               ["--prefix", ""], ["--prefix", "\ud800"], ["--step", "3"], ["--rnn", ""],
               ["--decoder", ""], ["--encoder", "decoder"], ["--identity-encoder"],
               ["--overwrite"])  # fmt: skip
    target = path.with_name("out.safetensors")
    run_a_command("convert", [str(path), str(target), *choose(options)])
    assert load_safetensors(target), "nothing was written"


# Files of a run


def vocabularies() -> list[Any]:
    return [each.to_dict() for each in VOCABULARIES]


def vocabulary_file(path: Path, choose: Choose) -> None:
    found = Vocabulary.load(path)
    found.save(path)
    again = Vocabulary.load(path)
    assert again == found
    assert found.decode(np.arange(len(found))) is not None


def described(preset: TrainConfig, **others: Any) -> dict[str, Any]:
    files = {"vocab.json": hashlib.sha256(b"{}").hexdigest()}
    data = {"sha256": "0" * 64, "about": "a text"}
    found = {"format": 2, "config": to_dict(preset), "data": data, "files": files}
    return found | {"written_by": {"lstm_jax": "0.1.0"}, **others}


def descriptions() -> list[Any]:
    return list(map(described, presets()))


def summed(description: dict[str, Any]) -> dict[str, Any]:
    """With a checksum that is right."""
    crc32 = zlib.crc32(json.dumps(description, sort_keys=True).encode())
    return description | {"crc32": crc32}


def config(tree: Any, choose: Choose) -> bytes:
    is_summed = isinstance(tree, dict) and choose((True, True, False))
    return as_json(summed(tree) if is_summed else tree, choose)


def require_types(config: Any) -> None:
    """Each setting is of the type of its default, where neither is None; "auto" is a number too."""
    defaults = flat(to_dict(type(config)()))
    for name, value in flat(to_dict(config)).items():
        kind = type(defaults[name])
        kinds = (int, float) if kind is float else (kind,)
        kinds += (int,) if defaults[name] == "auto" and name == "devices" else ()
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
    refuse_changes(folder, choose(presets()))


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
    "prompts and templates": Surface("lines.txt", lambda: PROMPTS, encoded, prompts),
    "word vector files": Surface("vectors.txt", vectors_of_words, spaced, word_vectors),
    "review tables": Surface("reviews.csv", labelled_texts, table, reviews),
    "review archives": Surface("reviews.tar.gz", archive_trees, archive, reviews),
    "vocab json": Surface("vocab.json", vocabularies, as_json, vocabulary_file, "vocab.json"),
    "config json": Surface(
        "config.json", descriptions, config, config_file, beside={"vocab.json": b"{}"}
    ),
    "metrics jsonl": Surface(
        "metrics.jsonl", lambda: (ROWS, ROWS[:1]), rows, metrics, "metrics.jsonl"
    ),
    "safetensors": Surface("weights.safetensors", safetensors_trees, safetensors, convert, _OUT),
    "files of pytorch": Surface(
        "weights.pt", pytorch_files, lambda content, _: content, convert, _OUT
    ),
}

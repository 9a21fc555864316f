"""Broken files, folders and command lines: refused by one line, or accepted and right."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from broken import odd_flags
from hypothesis import given
from hypothesis import strategies as st
from law import Law, many
from surfaces import SURFACES, contents, described, require_types, summed

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.options import ClassifyCommand, ConvertCommand, ExportCommand, SampleCommand
from lstm_jax.cli.train_options import TrainCommand, read_arguments
from lstm_jax.files import one_line
from lstm_jax.systems import presets, to_dict
from lstm_jax.systems.language import ANNA
from lstm_jax.text import Vocabulary, read_reviews, read_text
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, held, refuse_damaged_files, refuse_existing


def first(options: Sequence[Any]) -> Any:
    return options[0]


def last(options: Sequence[Any]) -> Any:
    return options[-1]


def read(law: Law, name: str, content: bytes, choose: Callable[[Sequence[Any]], Any]) -> None:
    surface = SURFACES[name]
    files = {surface.file: content, **surface.beside}
    with law.case(files, surface.writes) as place:
        surface.read(place / surface.file, choose)


TORCH = "files of pytorch"
of_torch = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:torch.*")]
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=of_torch if name == TORCH else []) for name in SURFACES]
)


@each
@many
@given(data=st.data())
def test_files(law: Law, name: str, data: st.DataObject) -> None:
    content = data.draw(contents(SURFACES[name]))
    read(law, name, content, lambda options: data.draw(st.sampled_from(options)))


@each
def test_what_is_valid_is_accepted(law: Law, name: str) -> None:
    surface = SURFACES[name]
    read(law, name, surface.pack(surface.trees()[0], first), first)
    assert law.row[1:] == [1, 0, 1]


def config_of(**others: Any) -> bytes:
    return json.dumps(summed(described(ANNA, **others))).encode()


def beyond_its_end(size: int) -> bytes:
    """An archive whose one member is said to end far beyond it: to read on took days."""
    info = tarfile.TarInfo("notes.bin")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


DEEP = "[" * 100_000 + "]" * 100_000
FIELDS = {"seed": 1.5, "batch_size": True, "heldout_from": "middle", "sample_prompts": [1],
          "data": 5, "heldout_share": 10**400,
          "model": to_dict(ANNA)["model"] | {"hidden_size": 1.5}}  # fmt: skip
FOUND: list[tuple[str, bytes, str]] = [
    ("text files", b"\xff\xfeno text", "UTF-8"),
    ("review tables", b'text,label\ngood,1\nbad,0\n"""', ""),
    ("review archives", gzip.compress(beyond_its_end(2**33), mtime=0), ""),
    ("review archives", gzip.compress(beyond_its_end(2**62), mtime=0), ""),
    ("vocab json", f'{{"tokens": {DEEP}}}'.encode(), "recursion"),
    # Python's text has more line ends than its bytes.
    ("metrics jsonl", '{"step": 1, "\u2028": 0}\n'.encode(), ""),
    # JSON has white space that Python takes for line ends.
    ("metrics jsonl", b'{"step"\r: 4}\n', ""),
    ("config json", f'{{"format": 2, "config": {DEEP}}}'.encode(), "recursion"),
    ("config json", config_of(config=""), "its system is None"),
    ("config json", config_of(config={"system": "sine"}), "import the module .* or restore it$"),
    ("config json", b"{}", "it lacks 'format'; restore it"),
]
for odd_file in ("../secret", "/dev/zero", "/etc/hostname", "", ".", "a\0b"):
    FOUND.append(("config json", config_of(files={odd_file: "0" * 64}), "names the file"))
for odd_files in ([], {"vocab.json": 5}, "x", None):
    FOUND.append(("config json", config_of(files=odd_files), "checksums"))
for field, value in FIELDS.items():
    settings = to_dict(ANNA) | {field: value}
    FOUND.append(("config json", config_of(config=settings), f"{field}.* is "))
"""Past findings, and a part of what they are refused with; where that is empty, the law is all."""


@pytest.mark.parametrize("choose", [first, last])
@pytest.mark.parametrize(("name", "content", "said"), FOUND)
def test_what_was_found_stays_mended(
    law: Law, name: str, content: bytes, said: str, choose: Callable[[Sequence[Any]], Any]
) -> None:
    read(law, name, content, choose)
    assert re.search(said, str(law.refusal))
    assert law.row[1:] == [1, law.refusal is not None, law.refusal is None]


@many
@given(
    st.lists(st.sampled_from((b"Good.", b"\xff\xfe", b"", b"bad " * 200, b"a\0b")), max_size=2),
    st.sampled_from(("a secret", "a device", "itself", "a pipe", "a folder", "no folder", "all")),
)
def test_review_folders(law: Law, texts: list[bytes], odd: str) -> None:
    with law.case() as place:
        root, secret = place / "reviews", place / "secret.txt"
        secret.write_bytes(b"not a review")
        for label in ("pos", "neg"):
            (root / "train" / label).mkdir(parents=True)
            for number, text in enumerate([*texts, b"a film"]):
                (root / "train" / label / f"{number}_1.txt").write_bytes(text)
        spoiled = root / "train" / "pos" / "7_7.txt"
        match odd:
            case "a pipe":
                os.mkfifo(spoiled)
            case "a folder":
                spoiled.mkdir()
            case "no folder":
                shutil.rmtree(root / "train" / "neg")
                (root / "train" / "neg").write_bytes(b"")
            case "all":
                (root / "test").symlink_to(root)
            case _:
                targets = {"a secret": secret, "itself": spoiled}
                spoiled.symlink_to(targets.get(odd, Path("/dev/zero")))
        found = read_reviews(root).training
        assert set(found.labels.tolist()) == {0, 1}
        assert "not a review" not in found.texts, "a link out of the folder was followed"


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(config_of())
    folder.vocabulary.symlink_to("/dev/zero")
    for read_it in (Vocabulary.load, read_text, lambda _: refuse_damaged_files(folder)):
        with pytest.raises(ValueError, match=r"vocab\.json"):
            read_it(folder.vocabulary)
    folder.metrics.symlink_to("/dev/zero")
    assert read_rows(folder.metrics) == []


def test_a_new_run_has_a_name_that_its_checkpoints_can_be_written_under(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        refuse_existing(RunFolder(tmp_path / "\udc80"))


def test_a_lock_that_is_a_link_empties_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.lock.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link"), held(folder):
        raise AssertionError
    assert (tmp_path / "secret").read_text() == "kept"


# Command lines


def names_of(owner: Any, prefix: str = "--") -> list[str]:
    """The flags of a dataclass, or of an instance with others inside."""
    found: list[str] = []
    for field in dataclasses.fields(owner):
        value, name = getattr(owner, field.name, None), prefix + field.name.replace("_", "-")
        found += names_of(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return found


@lru_cache
def readers() -> list[tuple[Callable[[Sequence[str]], Any], list[str], list[str]]]:
    """How each command reads its line, what it must be given, and its flags."""

    def reader(command: Any) -> Callable[[Sequence[str]], Any]:
        return lambda arguments: parse(command, None, arguments, "command")

    own = ["--run-dir", "--resume", "--eval-only", "--as-published"]
    of_runs = (SampleCommand, SampleCommand, ClassifyCommand)
    return [
        *((read_arguments, [each.preset], own + names_of(each)) for each in presets()),
        *((reader(command), ["run"], names_of(command)) for command in of_runs),
        *(
            (reader(command), ["run", "target.safetensors"], names_of(command))
            for command in (ConvertCommand, ExportCommand)
        ),
    ]


@many
@given(st.data())
def test_options(law: Law, data: st.DataObject) -> None:
    """All command lines, as far as they are read before anything else is done."""
    read_line, given_first, names = readers()[data.draw(st.integers(0, len(readers()) - 1))]
    line = [*given_first, *data.draw(odd_flags(names))]
    with law.case({}):
        try:
            command = read_line(line)
        except SystemExit as exit:
            if exit.code:
                raise
            return  # it printed help
        if isinstance(command, TrainCommand):
            require_types(command.config)


@given(st.text(st.sampled_from("a \n\t\0\ud800é"), max_size=3_000))
def test_an_error_is_one_line_of_bounded_length(text: str) -> None:
    line = one_line(ValueError(text), 1_000)
    assert line == " ".join(line.split())
    assert len(line) <= 1_000


@given(st.integers(1, 100_000))
def test_a_long_error_keeps_its_beginning_and_its_cure(length: int) -> None:
    line = one_line(ValueError(f"the prompt '{'x' * length}' is too long; shorten it"))
    assert line.startswith("the prompt 'x")
    assert line.endswith("; shorten it")

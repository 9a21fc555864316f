"""A run folder that somebody made up: refused in one line, or read as what it says."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.presets import ANNA, POEMS, PRESETS, REVIEWS
from lstm_jax.text import Vocabulary, read_text
from lstm_jax.training.config import AnyConfig, from_dict, to_dict
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.plots import draw_curves
from lstm_jax.training.run import (
    RunFolder,
    held,
    read_description,
    refuse_damaged_files,
    refuse_existing,
)
from lstm_jax.training.systems.reviews import load_vectors

DEEP = "[" * 100_000 + "]" * 100_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def write_config(place: Path, preset: AnyConfig, **others: Any) -> RunFolder:
    described = {
        "format": 2,
        "config": to_dict(preset),
        "data": {"sha256": "0" * 64},
        "files": {},
        **others,
    }
    described["crc32"] = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    folder = RunFolder(place)
    folder.config.write_text(json.dumps(described))
    return folder


def refusal(folder: RunFolder) -> str:
    with pytest.raises(ValueError) as caught:
        read_description(folder)
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.preset)
def test_a_made_up_config_is_what_was_made_up(preset: AnyConfig, tmp_path: Path) -> None:
    assert read_description(write_config(tmp_path, preset)).config == preset


@settings(max_examples=300)
@given(
    st.sampled_from(PRESETS).flatmap(
        lambda preset: st.tuples(st.just(preset), st.sampled_from(list(to_dict(preset))))
    ),
    json_values,
)
def test_a_field_holds_what_it_is_annotated_with_or_is_refused(
    place: tuple[AnyConfig, str], value: Any
) -> None:
    preset, name = place
    try:
        found = from_dict(to_dict(preset) | {name: value})
    except ValueError:
        return
    if not isinstance(value, dict):  # what an object of settings lacks is a default
        assert getattr(found, name, value) == (tuple(value) if isinstance(value, list) else value)
    assert from_dict(json.loads(json.dumps(to_dict(found)))) == found


@pytest.mark.parametrize(
    ("preset", "name", "value"),
    [
        (ANNA, "seed", 1.5),
        (ANNA, "batch_size", True),
        (ANNA, "heldout_from", "middle"),
        (ANNA, "sample_prompts", [1]),
        (ANNA, "sample_prompts", "The"),
        (ANNA, "data", 5),
        (ANNA, "heldout_share", 10**400),
        (POEMS, "drop_unfit", "no"),
        (REVIEWS, "vectors", ["glove.txt"]),
    ],
)
def test_a_field_of_a_wrong_type_is_named(preset: AnyConfig, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is "):
        from_dict(to_dict(preset) | {name: value})


def test_a_field_of_a_wrong_type_inside_another_is_named() -> None:
    values = to_dict(ANNA)
    values["model"]["hidden_size"] = 1.5
    with pytest.raises(ValueError, match=r"^model\.hidden_size is 1\.5; expected int"):
        from_dict(values)


def test_a_size_beyond_all_floats_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="heldout_share is 1000"):
        dataclasses.replace(ANNA, heldout_share=10**400)


def test_a_config_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"format": 2, "config": {DEEP}}}')
    assert "recursion" in refusal(RunFolder(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "/etc/hostname", "", ".", "a\0b"])
def test_a_config_names_no_file_but_the_run_s_own(name: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, ANNA, files={name: "0" * 64})
    assert "names the file" in refusal(folder)


@pytest.mark.parametrize("files", [[], {"vocab.json": 5}, "vocab.json", None])
def test_checksums_of_a_wrong_type_are_refused(files: Any, tmp_path: Path) -> None:
    assert "checksums" in refusal(write_config(tmp_path, ANNA, files=files))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder = write_config(tmp_path, ANNA, files={"vocab.json": "0" * 64})
    folder.vocabulary.symlink_to("/dev/zero")
    for read in (
        lambda: refuse_damaged_files(folder),
        lambda: Vocabulary.load(folder.vocabulary),
        lambda: read_text(folder.vocabulary),
    ):
        with pytest.raises(ValueError, match=r"vocab\.json"):
            read()
    folder.metrics.symlink_to("/dev/zero")
    assert read_rows(folder.metrics) == []


@pytest.mark.parametrize("line", [DEEP, '{"step": true}', '{"step": 1.5}', "[1]", '"\ud800"'])
def test_a_line_that_is_no_row_ends_the_rows(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}', line, '{"step": 2}']
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    assert read_rows(path) == [{"step": 1}]


def test_what_a_log_keeps_can_be_read_again(tmp_path: Path) -> None:
    """Python's text has more line ends than its bytes, and a name may hold one."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "\u2028": 0}\n', encoding="utf-8")
    log = MetricsLog(path, last_step=5)
    log.append({"step": 6})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 6]


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "epoch": 0.5, "loss": 1.0},
        {"step": 2},
        {"step": 3, "epoch": "x", "loss": []},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    draw_curves([tmp_path], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


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


def saved(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


TABLE = np.ones((4, 3), np.float32)


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, TABLE)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped(),
        b"PK\x03\x04 no archive",
        saved(TABLE).replace(b"(4, 3), }" + b" " * 12, b"(400000000000, 3), }".ljust(21)),
        saved(TABLE).replace(b"(4, 3), }" + b" " * 12, b"((((((((((((((((((((("),
        saved(TABLE).replace(b"'<f4'", b"'|V0'"),
        saved(TABLE.astype(np.float64)),
        saved(np.full((2, 2), np.nan, np.float32)),
        saved(np.ones(3, np.float32)),
        b"",
    ],
    ids=["npz", "no zip", "huge", "nested", "void", "float64", "NaN", "a row", "empty"],
)
def test_damaged_vectors_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"restore it$"):
        load_vectors(tmp_path / "vectors.npy")


def test_vectors_come_back(tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").write_bytes(saved(TABLE))
    assert np.array_equal(load_vectors(tmp_path / "vectors.npy"), TABLE)

"""Files of a run folder, some of it made up by somebody, and what `sample.py` goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import (
    ODD_TEXTS,
    PROSE,
    broken_bytes,
    broken_json,
    broken_text,
    json_bytes,
    rarely,
)
from broken import POEMS as POEM_LINES
from hypothesis import example, given
from hypothesis import strategies as st
from law import Surface, assert_types, many

from lstm_jax.cli.sample import file_lines
from lstm_jax.sampling.stops import make_stops
from lstm_jax.systems import PRESETS, from_dict, to_dict
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.language import ANNA
from lstm_jax.systems.poems import POEMS, build_poem_vocabulary, read_poems
from lstm_jax.systems.reviews import REVIEWS
from lstm_jax.systems.writer import blanks_template, joined, prompt_template
from lstm_jax.text import (
    Vocabulary,
    build_char_vocabulary,
    build_review_vocabulary,
    build_word_vocabulary,
    read_text,
    words,
)
from lstm_jax.training.log import MetricsLog, read_rows
from lstm_jax.training.plots import draw_curves
from lstm_jax.training.run import (
    RunFolder,
    held,
    read_description,
    refuse_changes,
    refuse_damaged_files,
    refuse_existing,
)

DEEP = "[" * 100_000 + "]" * 100_000
VOCABULARIES = (
    build_char_vocabulary(PROSE),
    build_char_vocabulary(PROSE, unknown=True),
    build_word_vocabulary(words(PROSE)),
    build_poem_vocabulary(read_poems(POEM_LINES).poems),
    build_review_vocabulary([["a", "good", "film"]]),
)


@st.composite
def json_files(draw: st.DrawFn, value: Any, whole: int = 3) -> bytes:
    content = draw(json_bytes(draw(broken_json(value))))
    return draw(rarely(st.just(content), broken_bytes(content), whole))


@many
@given(st.sampled_from(VOCABULARIES).flatmap(lambda each: json_files(each.to_dict())))
@example(f'{{"tokens": {DEEP}}}'.encode())
def test_vocab_json(surface: Surface, content: bytes) -> None:
    with surface.case({"vocab.json": content}, writes="vocab.json") as place:
        path = place / "vocab.json"
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


def summed(description: dict[str, Any]) -> dict[str, Any]:
    """With a checksum that is right."""
    crc32 = zlib.crc32(json.dumps(description, sort_keys=True).encode())
    return description | {"crc32": crc32}


@st.composite
def config_files(draw: st.DrawFn, preset: TrainConfig) -> bytes:
    """Half of them with a checksum that is right; some name odd files."""
    found = draw(broken_json(described(preset)))
    if isinstance(found, dict) and draw(rarely(st.just(True), st.just(False), 3)):
        if draw(rarely(st.just(False), st.just(True), 5)):
            odd = ("../secret", "/etc/passwd", "/dev/zero", "/dev/tty", ".", *ODD_TEXTS)
            found["files"] = {draw(st.sampled_from(odd)): "0" * 64}
        found = summed(found)
    content = draw(json_bytes(found))
    return draw(rarely(st.just(content), broken_bytes(content), 3))


def config_of(**others: Any) -> bytes:
    return json.dumps(summed(described(ANNA, **others))).encode()


@many
@given(st.sampled_from(PRESETS).flatmap(config_files), st.sampled_from(PRESETS))
@example(f'{{"format": 2, "config": {DEEP}}}'.encode(), ANNA)
@example(config_of(files={"/dev/zero": "0" * 64}), ANNA)
@example(config_of(config=to_dict(ANNA) | {"heldout_share": 10**400}), ANNA)
@example(config_of(config=to_dict(ANNA) | {"batch_size": True}), ANNA)
@example(config_of(config=to_dict(ANNA) | {"sample_prompts": [1]}), ANNA)
def test_config_json(surface: Surface, content: bytes, preset: TrainConfig) -> None:
    with surface.case({"vocab.json": b"{}", "config.json": content}) as place:
        folder = RunFolder(place)
        config: Any = read_description(folder).config
        assert from_dict(to_dict(config)) == config, "the settings do not survive JSON"
        json.dumps(to_dict(config), allow_nan=False)
        assert_types(config)
        refuse_damaged_files(folder)
        refuse_changes(folder, preset)


@st.composite
def metrics_files(draw: st.DrawFn) -> bytes:
    row = {"step": 0, "epoch": 0.5, "loss": 3.1, "heldout_loss": None}
    rows = [row | {"step": step} for step in range(0, draw(st.sampled_from((2, 30))), 2)]
    lines = [draw(json_bytes(row)).replace(b"\n", b"") for row in [draw(broken_json(row)), *rows]]
    at = draw(st.integers(0, len(lines) - 1))
    lines[0], lines[at] = lines[at], lines[0]
    content = b"\n".join(lines) + b"\n"
    return draw(st.just(content) | broken_bytes(content))


@many
@given(metrics_files())
@example('{"step": 1, "\u2028": 0}\n'.encode())  # Python's text has more line ends than its bytes
@example(f'{{"step": {DEEP}}}\n'.encode())
@example(b'{"step": true}\n{"step": 1.5}\n"\xed\xa0\x80"\n')
def test_metrics_jsonl(surface: Surface, content: bytes) -> None:
    with surface.case({"metrics.jsonl": content}, writes="metrics.jsonl") as place:
        path = place / "metrics.jsonl"
        assert all(type(row["step"]) is int for row in read_rows(path))
        log = MetricsLog(path, last_step=10)
        for aside in place.glob("metrics.jsonl.damaged*"):  # lines that are no rows are kept
            assert aside.read_bytes() == content
            aside.unlink()
        log.append({"step": 12, "loss": 1.0})
        log.close()
        assert read_rows(path)[-1]["step"] == 12, "a row that was written cannot be read"


@many
@given(
    st.sampled_from(VOCABULARIES),
    st.sampled_from(("The *o*\nfox jumps\n", "春**晓\n*\n", PROSE[:40])).flatmap(broken_text),
    st.data(),
)
def test_prompts_and_templates(
    surface: Surface, vocabulary: Vocabulary, text: str, data: st.DataObject
) -> None:
    content = text.encode("utf-8", errors="surrogatepass")
    content = data.draw(rarely(st.just(content), broken_bytes(content), 3))
    length, flag = data.draw(st.sampled_from((1, 30))), data.draw(st.booleans())
    with surface.case({"lines.txt": content}) as place:
        for number, line in file_lines(place / "lines.txt")[:20]:
            if number % 2:
                template = prompt_template(vocabulary, line, length)
            else:
                template = blanks_template(vocabulary, line, feed_unknown=flag)
            assert len(template.ids) == len(template.shown), "a place was lost"
            shown = joined(vocabulary, (each or "?" for each in template.shown), 5)
            assert "?" in shown or None not in template.shown
            make_stops(len(vocabulary), [vocabulary.encode_prompt(line[:9]).tolist()])


# Past findings, each in the words that it is refused with now


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@many
@given(st.sampled_from(PRESETS), st.data(), json_values)
def test_a_field_holds_what_it_is_annotated_with_or_is_refused(
    preset: TrainConfig, data: st.DataObject, value: Any
) -> None:
    name = data.draw(st.sampled_from(list(to_dict(preset))))
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
        (ANNA, "model", to_dict(ANNA)["model"] | {"hidden_size": 1.5}),
    ],
)
def test_a_field_of_a_wrong_type_is_named(preset: TrainConfig, name: str, value: Any) -> None:
    inside = r"model\.hidden_size is 1\.5; it must be an integer"
    named = inside if name == "model" else f"{name} is "
    with pytest.raises(ValueError, match=rf"^{named}"):
        from_dict(to_dict(preset) | {name: value})


def run_with(place: Path, content: bytes) -> RunFolder:
    folder = RunFolder(place)
    folder.config.write_bytes(content)
    return folder


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.preset)
def test_a_made_up_config_is_what_was_made_up(preset: TrainConfig, tmp_path: Path) -> None:
    content = json.dumps(summed(described(preset))).encode()
    assert read_description(run_with(tmp_path, content)).config == preset


named_files = ("../secret", "/dev/zero", "/etc/hostname", "", ".", "a\0b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *[(config_of(files={name: "0" * 64}), "names the file") for name in named_files],
        *[(config_of(files=each), "checksums") for each in ([], {"vocab.json": 5}, "x", None)],
        (f'{{"format": 2, "config": {DEEP}}}'.encode(), "recursion"),
    ],
)
def test_a_config_is_refused_for_what_is_wrong(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        read_description(run_with(tmp_path, content))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_device_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder = run_with(tmp_path, config_of())
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


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    rows = [{"step": 1, "epoch": 0.5, "loss": 1.0}, {"step": 2}]
    rows.append({"step": 3, "epoch": "x", "loss": []})  # type: ignore[dict-item]
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

"""Laws of the vocabularies and of their file format."""

import dataclasses
import json
import os
import pickle
import stat
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstm_jax.text import Vocabulary, build_char_vocabulary, build_word_vocabulary, words

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(codec="utf-8"), min_size=1)
word = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=6).map(str.lower)
word_lists = st.lists(
    st.one_of(word.filter(lambda w: words(w) == [w]), st.just("unknown")), min_size=1
)
vocabularies = st.one_of(
    st.builds(build_char_vocabulary, texts, unknown=st.booleans()),
    st.builds(build_word_vocabulary, word_lists),
)


def error_line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


# Encoding and decoding


@given(texts, st.booleans())
def test_char_round_trip(text: str, unknown: bool) -> None:
    vocabulary = build_char_vocabulary(text, unknown=unknown)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(text),)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode(ids.tolist()) == text


@given(texts, texts, st.booleans())
def test_char_encoding_equals_the_naive_loop(known: str, text: str, unknown: bool) -> None:
    vocabulary = build_char_vocabulary(known, unknown=unknown)
    position = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    if unknown:
        assert vocabulary.encode(text).tolist() == [position.get(char, 0) for char in text]
    elif set(text) <= set(known):
        assert vocabulary.encode(text).tolist() == [position[char] for char in text]
    else:
        message = error_line(lambda: vocabulary.encode(text))
        outside = sorted(set(text) - set(known))
        assert all(f"U+{ord(char):04X}" in message for char in outside[:10])
        assert message.count("U+") == min(len(outside), 10)


@given(word_lists)
def test_word_round_trip(found: list[str]) -> None:
    vocabulary = build_word_vocabulary(found)
    text = " ".join(found)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(found),)
    assert vocabulary.decode(ids) == text
    assert ids.tolist() == [vocabulary.tokens.index(word) for word in found]


@given(word_lists, st.text())
def test_word_encoding_equals_the_naive_loop(found: list[str], text: str) -> None:
    vocabulary = build_word_vocabulary(found)
    text += " " + found[0].upper()
    position = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    assert vocabulary.encode(text).tolist() == [position.get(word, 0) for word in words(text)]


@given(st.text("aé1 \u0301ö한각ộ'", min_size=1), st.sampled_from(["char", "word"]), st.data())
def test_a_prompt_is_read_in_the_normal_form_of_the_text(
    text: str, kind: str, data: st.DataObject
) -> None:
    own, other = data.draw(st.permutations(["NFC", "NFD"]))
    text = unicodedata.normalize(own, f"a {text}")
    vocabulary = (
        build_char_vocabulary(text) if kind == "char" else build_word_vocabulary(words(text))
    )
    given = unicodedata.normalize(other, text)
    assert vocabulary.outside(given) == []
    np.testing.assert_array_equal(vocabulary.encode_prompt(given), vocabulary.encode(text))
    assert vocabulary.in_known_form(text) == text


@given(texts, texts)
def test_another_normal_form_is_only_that_and_names_no_more_as_outside(
    known: str, text: str
) -> None:
    vocabulary = build_char_vocabulary(known)
    found = vocabulary.in_known_form(text)
    assert unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", text)
    assert set(vocabulary.outside(text)) == set(found) - set(known)


def test_errors_call_a_text_what_it_is() -> None:
    vocabulary = build_char_vocabulary("ab")
    assert error_line(lambda: vocabulary.encode_prompt("c")).startswith("prompt 'c' cannot")
    message = error_line(lambda: vocabulary.encode_prompt("", name="template"))
    assert message.startswith("template '' is empty")


def test_empty_text_has_no_ids() -> None:
    for vocabulary in (build_char_vocabulary("ab"), build_word_vocabulary(["ab"])):
        ids = vocabulary.encode("")
        assert ids.dtype == np.int32 and ids.shape == (0,)
        assert vocabulary.decode(ids) == vocabulary.decode([]) == ""


def test_outside_words_are_named() -> None:
    vocabulary = Vocabulary("word", ("a", "b"))
    message = error_line(lambda: vocabulary.encode("a c b d c"))
    assert "2 words" in message and "'c', 'd'" in message
    message = error_line(lambda: vocabulary.encode(" ".join(f"w{n}" for n in range(25))))
    assert "and 15 more" in message


def test_single_character_vocabulary() -> None:
    vocabulary = build_char_vocabulary("\U0010ffff" * 3)
    assert len(vocabulary) == 1
    assert vocabulary.encode("\U0010ffff").tolist() == [0]
    assert "'b' (U+0062)" in error_line(lambda: vocabulary.encode("b"))


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ude00\ud83d"])
def test_lone_surrogates(text: str) -> None:
    vocabulary = build_char_vocabulary("ab", unknown=True)
    assert "surrogate" in error_line(lambda: vocabulary.encode(text))
    assert "surrogate" in error_line(lambda: build_char_vocabulary(text))
    assert "surrogate" in error_line(lambda: build_word_vocabulary([text]))


@pytest.mark.parametrize(
    "ids",
    [
        [2],
        [-1],
        [0, 2**31],
        [2**70],
        [0.0],
        [True],
        [[0]],
        [[0], [0, 1]],
        0,
        "a",
        None,
        [float("nan")],
    ],
)
def test_ids_that_are_none(ids: Any) -> None:
    error_line(lambda: Vocabulary("char", ("a", "b")).decode(ids))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.uint64])
def test_any_integer_type_decodes(dtype: type) -> None:
    assert Vocabulary("char", ("a", "b")).decode(np.array([1, 0], dtype)) == "ba"


def instructions(call: Callable[[], object]) -> int:
    """How many of Python's own instructions a call takes."""
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_characters_are_encoded_without_a_loop_in_python() -> None:
    line = "the quick brown fox; \u00e9\n"
    vocabulary = build_char_vocabulary(line)
    instructions(partial(vocabulary.encode, "x"))  # Python 3.12 tells of none at the first time
    short, long = (instructions(partial(vocabulary.encode, text)) for text in (line, 90 * line))
    assert 0 < short == long
    looping = instructions(lambda: [vocabulary.tokens.index(sign) for sign in line])
    assert looping > len(line)  # the count would show it


# Building


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), st.randoms())
def test_order_of_lines_does_not_matter(lines: list[str], random: Any) -> None:
    shuffled = random.sample(lines, len(lines))
    text, other = "x\n" + "\n".join(lines), "\n".join([*shuffled, "x"])
    assert build_char_vocabulary(text) == build_char_vocabulary(other)
    assert build_word_vocabulary(words(text)) == build_word_vocabulary(words(other))


@given(texts)
def test_characters_are_sorted(text: str) -> None:
    assert list(build_char_vocabulary(text).tokens) == sorted(set(text))
    with_unknown = build_char_vocabulary(text, unknown=True)
    assert with_unknown.unknown == 0
    assert list(with_unknown.tokens) == ["\ufffd", *sorted(set(text) - {"\ufffd"})]


@given(st.lists(st.sampled_from(["a", "b", "c", "unknown"]), min_size=1), st.integers(1, 3))
def test_words_are_sorted_by_frequency(found: list[str], min_count: int) -> None:
    if max(map(found.count, found)) < min_count:
        assert "min_count" in error_line(lambda: build_word_vocabulary(found, min_count=min_count))
        return
    vocabulary = build_word_vocabulary(iter(found), min_count=min_count)
    assert vocabulary.tokens[0] == "unknown" and vocabulary.unknown == 0
    kept = [w for w in set(found) if found.count(w) >= min_count and w != "unknown"]
    assert list(vocabulary.tokens[1:]) == sorted(sorted(kept), key=found.count, reverse=True)


def test_unknown_as_a_word_of_the_text_is_the_unknown_token() -> None:
    vocabulary = build_word_vocabulary(["unknown", "unknown", "the"])
    assert vocabulary.tokens == ("unknown", "the")
    assert vocabulary.encode("The unknown thing").tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_char_vocabulary(""),
        lambda: build_char_vocabulary("", unknown=True),
        lambda: build_word_vocabulary([]),
        lambda: build_word_vocabulary("one text"),
        lambda: build_word_vocabulary(["two words"]),
        lambda: build_word_vocabulary([""]),
        lambda: build_word_vocabulary(["a"], min_count=2),
        lambda: Vocabulary("char", ()),
        lambda: Vocabulary("char", ("ab",)),
        lambda: Vocabulary("char", ("a", "a")),
        lambda: Vocabulary("char", ["a"]),  # type: ignore[arg-type]
        lambda: Vocabulary("char", (1,)),  # type: ignore[arg-type]
        lambda: Vocabulary("bytes", ("a",)),  # type: ignore[arg-type]
        lambda: Vocabulary("char", ("a",), 1),
        lambda: Vocabulary("char", ("a",), -1),
        lambda: Vocabulary("char", ("a", "b"), True),
    ],
)
def test_impossible_vocabularies(build: Callable[[], object]) -> None:
    error_line(build)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_char_vocabulary("a").unknown = 0  # type: ignore[misc]


# Files


@same_folder
@given(vocabularies)
def test_save_and_load(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = tmp_path / "vocabulary.json"
    vocabulary.save(file)
    loaded = Vocabulary.load(str(file))
    assert loaded == vocabulary and hash(loaded) == hash(vocabulary)
    assert loaded.fingerprint() == vocabulary.fingerprint()
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert os.listdir(tmp_path) == ["vocabulary.json"]


@given(vocabularies, vocabularies)
def test_fingerprint_tells_apart(one: Vocabulary, other: Vocabulary) -> None:
    assert (one.fingerprint() == other.fingerprint()) == (one == other)


def test_fingerprint_stays_what_it_is() -> None:
    # Checkpoints store it: if this changes, old ones no longer match their vocabulary.
    assert build_char_vocabulary("ab\u00e9").fingerprint() == (
        "a70883e2ef30f1a71985bf95ffb707d416dd0e3dc16aa24143b67e80e9d6fcd9"
    )


def test_file_is_readable_text_with_ordinary_permissions(tmp_path: Path) -> None:
    file, plain = tmp_path / "vocabulary.json", tmp_path / "plain"
    plain.touch()
    build_char_vocabulary("\u8bd7").save(file)
    assert "\u8bd7" in file.read_text("utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vocabulary.json"
    old = build_char_vocabulary("old")
    old.save(file)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in error_line(lambda: build_char_vocabulary("new").save(file))
    assert Vocabulary.load(file) == old
    assert os.listdir(tmp_path) == ["vocabulary.json"]


def test_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    vocabulary = build_char_vocabulary("a")
    for path in (tmp_path, tmp_path / "no\nwhere" / "v", tmp_path / "file" / "v", "a\0b", "\0/b"):
        assert repr(os.fspath(path)) in error_line(partial(vocabulary.save, path))
        assert repr(os.fspath(path)) in error_line(partial(Vocabulary.load, path))
    assert os.listdir(tmp_path) == ["file"]


def load_error(folder: Path, content: bytes) -> str:
    file = folder / "hostile.json"
    file.write_bytes(content)
    message = error_line(lambda: Vocabulary.load(file))
    assert repr(str(file)) in message
    return message


GOOD = {"format_version": 1, "kind": "char", "unknown": None, "tokens": ["a", "b"]}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format_version", 2, "upgrade"),
        ("format_version", 10**400, "upgrade"),
        ("format_version", 0, "format_version"),
        ("format_version", 1.0, "format_version"),
        ("format_version", True, "format_version"),
        ("format_version", "1", "format_version"),
        ("kind", "bytes", "kind"),
        ("kind", ["char"], "kind"),
        ("kind", None, "kind"),
        ("kind", "word\n", "kind"),
        ("unknown", 2, "unknown"),
        ("unknown", -1, "unknown"),
        ("unknown", 10**400, "unknown"),
        ("unknown", 0.0, "unknown"),
        ("unknown", True, "unknown"),
        ("unknown", "0", "unknown"),
        ("unknown", float("nan"), "NaN"),
        ("unknown", float("-inf"), "Infinity"),
        ("tokens", [], "at least one"),
        ("tokens", "ab", "list"),
        ("tokens", {"a": 0}, "list"),
        ("tokens", None, "list"),
        ("tokens", ["a", 1], "strings"),
        ("tokens", ["a", None], "strings"),
        ("tokens", ["a", ["b"]], "strings"),
        ("tokens", ["a", "b", "a"], "'a' occurs twice"),
        ("tokens", ["\n", "\n"], "twice"),
        ("tokens", ["a", ""], "token 1"),
        ("tokens", ["ab"], "token 0"),
        ("tokens", ["\ud800"], "surrogate"),
        ("extra", 1, "besides"),
    ],
)
def test_hostile_fields(tmp_path: Path, field: str, value: Any, said: str) -> None:
    assert said in load_error(tmp_path, json.dumps({**GOOD, field: value}).encode())


@pytest.mark.parametrize("field", GOOD)
def test_missing_fields(tmp_path: Path, field: str) -> None:
    rest = {key: value for key, value in GOOD.items() if key != field}
    assert field in load_error(tmp_path, json.dumps(rest).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[]",
        b"NaN",
        b"1" * 10_000,
        b'{"unknown": 1e999999}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    load_error(tmp_path, content)


@same_folder
@given(vocabularies, st.data())
def test_every_truncation_is_noticed(tmp_path: Path, vocabulary: Vocabulary, data: Any) -> None:
    file = tmp_path / "vocabulary.json"
    vocabulary.save(file)
    content = file.read_bytes().rstrip()
    load_error(tmp_path, content[: data.draw(st.integers(0, len(content) - 1))])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@same_folder
@given(json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values)))
def test_any_json_loads_or_is_one_clear_line(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "any.json"
    file.write_text(json.dumps(value))
    try:
        loaded = Vocabulary.load(file)
    except ValueError:
        load_error(tmp_path, file.read_bytes())
    else:
        assert loaded.to_dict() == value


@same_folder
@given(st.sampled_from(sorted(GOOD)), json_values)
def test_any_field_loads_or_is_one_clear_line(tmp_path: Path, field: str, value: Any) -> None:
    content = json.dumps({**GOOD, field: value}).encode()
    file = tmp_path / "any.json"
    file.write_bytes(content)
    try:
        loaded = Vocabulary.load(file)
    except ValueError:
        load_error(tmp_path, content)
    else:
        assert loaded.to_dict() == {**GOOD, field: value}


@given(json_values)
def test_from_dict_trusts_nothing(value: Any) -> None:
    try:
        vocabulary = Vocabulary.from_dict(value)
    except ValueError:
        error_line(lambda: Vocabulary.from_dict(value))
    else:
        assert vocabulary.to_dict() == value

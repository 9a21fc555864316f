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
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal, write
from run_cases import files_of_at_most

from lstm_jax.text import Vocabulary, build_char_vocabulary, build_word_vocabulary, words

texts = st.text(st.characters(codec="utf-8"), min_size=1)
word = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=6).map(str.lower)
word_lists = st.lists(
    st.one_of(word.filter(lambda w: words(w) == [w]), st.just("unknown")), min_size=1
)
vocabularies = st.one_of(
    st.builds(build_char_vocabulary, texts, unknown=st.booleans()),
    st.builds(build_word_vocabulary, word_lists),
)


# Encoding and decoding


@given(texts, texts, st.booleans())
def test_characters_are_encoded_as_the_naive_loop_does_and_decoded_to_themselves(
    known: str, text: str, unknown: bool
) -> None:
    vocabulary = build_char_vocabulary(known, unknown=unknown)
    ids = vocabulary.encode(known)
    assert ids.dtype == np.int32 and ids.shape == (len(known),)
    for integers in (ids, ids.tolist(), ids.astype(np.uint64), ids.astype(np.int64)):
        assert vocabulary.decode(integers) == known
    position = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    if unknown or set(text) <= set(known):
        assert vocabulary.encode(text).tolist() == [position.get(char, 0) for char in text]
        return
    message, outside = refusal(vocabulary.encode, text), sorted(set(text) - set(known))
    assert all(f"U+{ord(char):04X}" in message for char in outside[:10])
    assert message.count("U+") == min(len(outside), 10)


def test_characters_are_encoded_without_a_loop_in_python() -> None:
    def instructions(call: Callable[[], object]) -> int:
        events = []

        def trace(frame: FrameType, event: str, _: object) -> Any:
            frame.f_trace_opcodes = True
            events.append(event)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
        return events.count("opcode")

    line = "the quick brown fox; \u00e9\n"
    vocabulary = build_char_vocabulary(line)
    instructions(partial(vocabulary.encode, "x"))  # Python 3.12 counts none at the first time
    short, long = (instructions(partial(vocabulary.encode, text)) for text in (line, 90 * line))
    assert 0 < short == long
    assert instructions(lambda: [vocabulary.tokens.index(sign) for sign in line]) > len(line)


@given(word_lists, st.text())
def test_words_are_encoded_as_the_naive_loop_does_and_decoded_to_themselves(
    found: list[str], text: str
) -> None:
    vocabulary = build_word_vocabulary(found)
    ids = vocabulary.encode(" ".join(found))
    assert ids.dtype == np.int32 and ids.shape == (len(found),)
    assert vocabulary.decode(ids) == " ".join(found)
    text += " " + found[0].upper()
    position = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    assert vocabulary.encode(text).tolist() == [position.get(word, 0) for word in words(text)]
    empty = vocabulary.encode("")
    assert empty.dtype == np.int32 and empty.shape == (0,) and vocabulary.decode([]) == ""


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


def test_errors_call_a_text_what_it_is_and_name_what_is_outside() -> None:
    characters, two = build_char_vocabulary("ab"), Vocabulary("word", ("a", "b"))
    assert refusal(characters.encode_prompt, "c").startswith("prompt 'c' cannot")
    message = refusal(characters.encode_prompt, "", name="template")
    assert message.startswith("template '' is empty")
    assert refusal(two.encode_prompt, "!").startswith("prompt '!' holds no word; give")
    message = refusal(two.encode, "a c b d c")
    assert "2 words" in message and "'c', 'd'" in message
    assert "and 15 more" in refusal(two.encode, " ".join(f"w{n}" for n in range(25)))
    last = build_char_vocabulary("\U0010ffff" * 3)
    assert last.encode("\U0010ffff").tolist() == [0]
    assert "'b' (U+0062)" in refusal(last.encode, "b")
    assert "id 1 is outside" in refusal(last.decode, [0, 1])


# Building


@given(texts)
def test_characters_are_sorted(text: str) -> None:
    assert list(build_char_vocabulary(text).tokens) == sorted(set(text))
    with_unknown = build_char_vocabulary(text, unknown=True)
    assert with_unknown.unknown == 0
    assert list(with_unknown.tokens) == ["\ufffd", *sorted(set(text) - {"\ufffd"})]


@given(st.lists(st.sampled_from(["a", "b", "c", "unknown"]), min_size=1), st.integers(1, 3))
def test_words_are_sorted_by_frequency(found: list[str], min_count: int) -> None:
    if max(map(found.count, found)) < min_count:
        assert "min_count" in refusal(build_word_vocabulary, found, min_count=min_count)
        return
    vocabulary = build_word_vocabulary(iter(found), min_count=min_count)
    assert vocabulary.tokens[0] == "unknown" and vocabulary.unknown == 0
    kept = [w for w in set(found) if found.count(w) >= min_count and w != "unknown"]
    assert list(vocabulary.tokens[1:]) == sorted(sorted(kept), key=found.count, reverse=True)


# Files


@given(vocabularies, vocabularies)
def test_save_and_load(tmp_path: Path, vocabulary: Vocabulary, other: Vocabulary) -> None:
    file = tmp_path / "vocabulary.json"
    vocabulary.save(file)
    loaded = Vocabulary.load(str(file))
    assert loaded == vocabulary and hash(loaded) == hash(vocabulary)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert (vocabulary == other) == (vocabulary.to_dict() == other.to_dict())
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert os.listdir(tmp_path) == ["vocabulary.json"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.unknown = 0  # type: ignore[misc]


def test_file_is_readable_text_with_ordinary_permissions(tmp_path: Path) -> None:
    file, plain = tmp_path / "vocabulary.json", write(tmp_path / "plain", "")
    build_char_vocabulary("\u8bd7").save(file)
    assert "\u8bd7" in file.read_text("utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "vocabulary.json"
    old = build_char_vocabulary("old")
    old.save(file)
    with files_of_at_most(2):
        assert "too large" in refusal(build_char_vocabulary("new").save, file)
    assert Vocabulary.load(file) == old
    assert os.listdir(tmp_path) == ["vocabulary.json"]


def test_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    vocabulary = build_char_vocabulary("a")
    for path in (tmp_path, tmp_path / "no\nwhere" / "v", tmp_path / "file" / "v", "a\0b", "\0/b"):
        assert repr(os.fspath(path)) in refusal(vocabulary.save, path)
    assert os.listdir(tmp_path) == ["file"]

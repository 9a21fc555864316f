"""Laws of the poem reader and its vocabulary."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.systems.poems import PADDING_CHARACTER, build_poem_vocabulary, read_poems
from lstm_jax.text import read_text

bodies_of_poems = st.lists(st.text("ab月", max_size=5), min_size=1, max_size=12)
choices: Any = st.sampled_from(["first", "last"])


def error_line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert len(message.splitlines()) == 1, message
    assert ";" in message, "no cure"
    return message


# Reading


@given(bodies_of_poems, st.integers(1, 6), choices, st.booleans(), st.booleans())
def test_same_as_one_line_after_the_other(
    bodies: list[str],
    length: int,
    keep: Literal["first", "last"],
    drop_empty: bool,
    drop_repeated: bool,
) -> None:
    kept: list[str] = []
    repeated = 0
    for position, body in enumerate(bodies):
        again = body in bodies[:position]
        repeated += again
        if not (again and drop_repeated) and not (not body and drop_empty):
            kept.append(body)
    text = "".join(f"title:{body}\n\n" for body in bodies) + "no colon\n"

    def read() -> object:
        return read_poems(
            text, length=length, keep=keep, drop_empty=drop_empty, drop_repeated=drop_repeated
        )

    if not kept:
        assert "title:poem" in error_line(read)
        return
    cut = [body[:length] if keep == "first" else body[-length:] for body in kept]
    assert read() == (
        tuple(cut),
        len(bodies) + 1,
        bodies.count(""),
        repeated,
        1,
        sum(whole != part for whole, part in zip(kept, cut, strict=True)),
    )


@pytest.mark.parametrize(
    ("line", "poem"),
    [
        ("a:b", "b"),
        ("a：b", "b"),  # noqa: RUF001
        ("a:b:c", "b:c"),
        ("a：b：c", "b：c"),  # noqa: RUF001
        ("quoted：line）:poem", "poem"),  # noqa: RUF001
        (":b", "b"),
        ("  a : b \t c\u3000d\r", "bcd"),
    ],
)
def test_where_a_line_is_split(line: str, poem: str) -> None:
    assert read_poems(line).poems == (poem,)


def test_repetition_is_judged_before_cutting() -> None:
    found = read_poems("a:xy1\nb:xy2\nc:x y1", length=2)
    assert found.poems == ("xy", "xy")
    assert (found.repeated, found.cut) == (1, 2)


@pytest.mark.parametrize("text", ["", "\n \n", "no colon", "title:", "title: \nother:\n"])
def test_no_poem(text: str) -> None:
    assert "title:poem" in error_line(lambda: read_poems(text))


# Vocabulary


@given(st.lists(st.text("abc月", max_size=5), min_size=1).filter(any))
def test_falling_frequency_then_code_point(poems: list[str]) -> None:
    vocabulary = build_poem_vocabulary(poems)
    counts = Counter("".join(poems))
    assert (vocabulary.kind, vocabulary.unknown) == ("char", None)
    assert (vocabulary.tokens[0], vocabulary.padding) == (PADDING_CHARACTER, 0)
    assert set(vocabulary.tokens[1:]) == set(counts)
    keys = [(-counts[token], ord(token)) for token in vocabulary.tokens[1:]]
    assert keys == sorted(keys)
    assert build_poem_vocabulary(reversed(poems)) == vocabulary
    assert all(vocabulary.decode(vocabulary.encode(poem)) == poem for poem in poems)
    assert all(vocabulary.encode(poem).all() for poem in poems), "a character is the padding"


@pytest.mark.parametrize("poems", [[], [""], ["a\0b"], ["\ud800"]])
def test_impossible_vocabularies(poems: Any) -> None:
    error_line(lambda: build_poem_vocabulary(poems))


# The real corpus


@pytest.mark.skipif("LSTM_JAX_DATA" not in os.environ, reason="LSTM_JAX_DATA is not set")
def test_tang_poems() -> None:
    text = read_text(Path(os.environ["LSTM_JAX_DATA"]) / "tang_poems.txt")
    whole = read_poems(text, drop_empty=False, drop_repeated=False)
    assert whole[1:] == (37_260, 193, 1_129, 0, 0)
    assert len(whole.poems) == 37_260
    assert max(map(len, whole.poems)) < 50
    assert len(build_poem_vocabulary(whole.poems)) == 6_543 + 1
    distinct = read_poems(text)
    # All empty poems but the first are repeated as well, so they are left out once, not twice.
    assert len(distinct.poems) == 37_260 - 193 - 1_129 + 192
    assert distinct[1:] == whole[1:]

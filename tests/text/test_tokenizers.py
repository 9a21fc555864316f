"""Laws of the word tokenizer."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.text import words


@given(st.text())
def test_splitting_again_changes_nothing(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once
    assert all(word.split() == [word] for word in once)


@given(st.text(), st.text())
def test_a_line_end_separates(left: str, right: str) -> None:
    assert words(left + "\n" + right) == words(left) + words(right)


@given(st.lists(st.text(string.ascii_lowercase + "-'", min_size=1)), st.randoms())
def test_punctuation_and_white_space_are_all_alike(expected: list[str], random: Any) -> None:
    removed = string.punctuation.replace("-", "").replace("'", "") + string.whitespace
    text = "".join(word + random.choice(removed) * random.randint(1, 3) for word in expected)
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\r\n\x1c\u2028\u3000", []),
        ("First Citizen:\r\nBefore we proceed", ["first", "citizen", "before", "we", "proceed"]),
        ("o'er the well-known 'tis_so", ["o'er", "the", "well-known", "'tis", "so"]),
        (
            "na\u00efve \u0421\u0442\u0435\u043f\u044c",
            ["na\u00efve", "\u0441\u0442\u0435\u043f\u044c"],
        ),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\u201cquoted\u201d\u2014dash", ["quoted", "dash"]),
        ("$5 + 10%", ["5", "10"]),
    ],
)
def test_examples(text: str, expected: list[str]) -> None:
    assert words(text) == expected

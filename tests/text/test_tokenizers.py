"""Laws of the word tokenizers."""

import itertools
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.text import review_words, words


@given(st.text())
def test_splitting_again_changes_nothing(text: str) -> None:
    for split in (words, review_words):
        once = split(text)
        assert split(" ".join(once)) == once
        assert all(word.split() == [word] for word in once)
    assert all(word.strip("'") == word for word in review_words(text))


@given(st.lists(st.text("ab'-\u0301\u0939\u094d", min_size=1)))
def test_format_characters_end_no_word(texts: list[str]) -> None:
    found = words(" ".join(texts))
    hyphenated = " ".join("\u00ad".join(["", *word, ""]) for word in found)
    assert words(hyphenated) == found
    joined = " ".join("\u200c".join(word) for word in found)
    assert words(joined) == joined.split()


@given(st.lists(st.text(string.ascii_lowercase + "-'", min_size=1)), st.randoms())
def test_punctuation_and_white_space_are_all_alike(expected: list[str], random: Any) -> None:
    removed = string.punctuation.replace("-", "").replace("'", "") + string.whitespace
    text = "".join(word + random.choice(removed) * random.randint(1, 3) for word in expected)
    assert words(text) == expected


@pytest.mark.parametrize(
    "between", ["<br />", "<br/><BR>", "</Br>", "< br\n/ >", "\n", "-", "_", "' '", "\u2014", ","]
)
@given(left=st.text(), right=st.text())
def test_what_separates_the_words_of_a_review(between: str, left: str, right: str) -> None:
    ends = review_words(left), review_words(right)
    assert review_words(f"{left} a{between}b {right}") == [*ends[0], "a", "b", *ends[1]]


EXAMPLES: list[tuple[str, list[str]]] = [
    ("", []),
    (" \t\r\n\x1c\u2028\u3000", []),
    ("First Citizen:\r\nBefore we proceed", ["first", "citizen", "before", "we", "proceed"]),
    ("o'er the well-known 'tis_so", ["o'er", "the", "well-known", "'tis", "so"]),
    ("na\u00efve \u0421\u0442\u0435\u043f\u044c", ["na\u00efve", "\u0441\u0442\u0435\u043f\u044c"]),
    ("e\u0301te\u0301", ["e\u0301te\u0301"]),
    ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
    ("\u201cquoted\u201d\u2014dash", ["quoted", "dash"]),
    ("$5 + 10%", ["5", "10"]),
    # Persian and Hindi, spelled with joiners of zero width.
    ("\u0645\u06cc\u200c\u0631\u0648\u0645.", ["\u0645\u06cc\u200c\u0631\u0648\u0645"]),
    ("\u0915\u094d\u200d\u0937 \u0915", ["\u0915\u094d\u200d\u0937", "\u0915"]),
    ("\u200ca\u200d \u200d b\u200c\u0301", ["a", "b\u200c\u0301"]),
    ("co\u00adop\u00ader\u00adate", ["cooperate"]),
    ("\u202aright\u202c \u200eleft\u200f join\u2060ed", ["right", "left", "joined"]),
    ("one\u200bword\u00ad\u200bmore", ["one", "word", "more"]),
    # A heart and a variation selector; an astronaut, who is joined of two signs.
    ("love \u2764\ufe0f \U0001f469\u200d\U0001f680 x \u0301 y", ["love", "x", "y"]),
]
EXAMPLES_OF_REVIEWS: list[tuple[str, list[str]]] = [
    ("'' ' \u2019", []),
    ("Don\u2019t say 'It\u2019s GREAT'!", ["don't", "say", "it's", "great"]),
    ("the boys' 'tis rock'n'roll", ["the", "boys", "tis", "rock'n'roll"]),
    ("well-known, 8/10...", ["well", "known", "8", "10"]),
    ("e\u0301te\u0301 \u0939\u093f\u0928\u094d", ["e\u0301te\u0301", "\u0939\u093f\u0928\u094d"]),
    ("brave <b>br</b>", ["brave", "b", "br", "b"]),
    # Quadratic time would be hours.
    ("<" + " " * 2**20, []),
    ("< /" * 2**18, []),
]


@pytest.mark.parametrize(
    ("split", "text", "expected"),
    [
        (split, *each)
        for split, examples in ((words, EXAMPLES), (review_words, EXAMPLES_OF_REVIEWS))
        for each in examples
    ],
    ids=itertools.count(),
)
def test_examples(split: Any, text: str, expected: list[str]) -> None:
    assert split(text) == expected

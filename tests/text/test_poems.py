"""Laws of the poem reader, its vocabulary, and what is predicted of a poem."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import DATA, real_corpora, refusal

from lstm_jax.systems.poems import (
    PADDING_CHARACTER,
    PoemsConfig,
    PoemsSystem,
    build_poem_vocabulary,
    read_poems,
)
from lstm_jax.text import read_text

bodies_of_poems = st.lists(st.text("ab月", max_size=5), min_size=1, max_size=12)
choices: Any = st.sampled_from(["first", "last"])


@given(bodies_of_poems, st.integers(1, 6), choices, st.booleans())
def test_same_as_one_line_after_the_other(
    bodies: list[str], length: int, keep: Literal["first", "last"], drop_unfit: bool
) -> None:
    kept: list[str] = []
    repeated = 0
    for position, body in enumerate(bodies):
        again = body in bodies[:position]  # which is judged before cutting
        repeated += again and body != ""
        if not drop_unfit or (body and not again):
            kept.append(body)
    text = "".join(f"title:{body}\n\n" for body in bodies) + "no colon\n"
    options: Any = {"length": length, "keep": keep, "drop_unfit": drop_unfit}
    if not kept:
        assert "title:poem" in refusal(read_poems, text, **options)
        return
    cut = [body[:length] if keep == "first" else body[-length:] for body in kept]
    assert read_poems(text, **options) == (
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


@settings(max_examples=40)
@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=9), st.integers(2, 7))
def test_prediction_is_that_of_poems_filled_up_to_the_longest(
    tmp_path: Path, poems: list[str], longest: int
) -> None:
    (tmp_path / "poems.txt").write_text("".join(f"title:{poem}\n" for poem in poems))
    config = PoemsConfig(
        data=str(tmp_path / "poems.txt"),
        heldout_share=0.0,
        batch_size=4,
        length=longest,
        widths=2,
        drop_unfit=False,
    )
    system = PoemsSystem.read(config)
    feed, found = system.feed(), Counter[bytes]()
    for step in range(system.batches):
        inputs, targets, mask = map(np.asarray, feed(step))
        assert inputs.shape == targets.shape == mask.shape and inputs.shape[1] == 4
        assert inputs.dtype == targets.dtype == np.int32 and mask.dtype == np.bool_
        fill = ((0, longest - 1 - len(inputs)), (0, 0))
        columns = [np.pad(part, fill).astype(np.int32) for part in (inputs, targets, mask)]
        found.update(
            np.stack(columns)[:, :, row].tobytes() for row in range(4) if mask[:, row].any()
        )
    expected = Counter[bytes]()
    for poem in poems:
        filled = np.zeros(longest, np.int32)
        filled[: len(poem)] = system.vocabulary.encode(poem[:longest])
        expected[np.stack([filled[:-1], filled[1:], filled[:-1] > 0]).tobytes()] += 1
    assert found == expected


@real_corpora
def test_tang_poems() -> None:
    text = read_text(DATA / "tang_poems.txt")
    whole = read_poems(text, drop_unfit=False)
    assert whole[1:] == (37_260, 193, 937, 0, 0)
    assert len(whole.poems) == 37_260
    assert max(map(len, whole.poems)) < 50
    assert len(build_poem_vocabulary(whole.poems)) == 6_543 + 1
    distinct = read_poems(text)
    assert len(distinct.poems) == 37_260 - 193 - 937
    assert distinct[1:] == whole[1:]

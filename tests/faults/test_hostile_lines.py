"""Errors are one line of bounded length, whatever they repeat."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.cli.arguments import error_line


@given(st.text(st.sampled_from("a \n\t\0\ud800é"), max_size=3_000))
def test_an_error_is_one_line_of_bounded_length(text: str) -> None:
    line = error_line(ValueError(text))
    assert line == " ".join(line.split())
    assert len(line) <= 1_000


@given(st.integers(1, 100_000))
def test_a_long_error_keeps_its_beginning_and_its_cure(length: int) -> None:
    line = error_line(ValueError(f"the prompt '{'x' * length}' is too long; shorten it"))
    assert line.startswith("the prompt 'x")
    assert line.endswith("; shorten it")

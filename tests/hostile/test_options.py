"""Command lines: wrong types, numbers that are none, flags that don't exist; errors of one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from law import Surface, assert_types, many

from lstm_jax.cli.arguments import parse
from lstm_jax.cli.console import error_line
from lstm_jax.cli.options import ClassifyCommand, ConvertCommand, ExportCommand, SampleCommand
from lstm_jax.cli.train_options import TrainCommand, read_arguments
from lstm_jax.systems import PRESETS

VALUES = ("", " ", "0", "1", "-1", "2", "1.5", "1e3", "1e400", "-1e400", "nan", "inf", "-inf",
          "1_000", "0x10", "\u0663", "9" * 30, "-" + "9" * 30, "9" * 400, "9" * 5_000, "true",
          "None", "none", "[]", "{}", "--", "-", "=", "x", "Ω", "e\u0301", "\U0001f600", "\udc80",
          "a\0b", "a\nb", "a" * 5_000, "../..", "/dev/null", "newest", "lstm",
          "float32")  # fmt: skip
"""What a flag may be given."""


@st.composite
def flags(draw: st.DrawFn, names: Sequence[str]) -> list[str]:
    """A few flags with values, most of them odd."""
    arguments: list[str] = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        flag, value = draw(st.sampled_from(names)), draw(st.sampled_from(VALUES))
        underscored = flag.replace("-", "_").replace("__", "--", 1)
        ways = ([flag], [value], [underscored, value], [flag[:-1], value], [flag, value, value],
                [f"{flag}={value}"], [f"{flag}={value}"], [flag, value], [flag, value],
                [flag, value])  # fmt: skip
        arguments += draw(st.sampled_from(ways))
    return arguments


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
    presets = [(read_arguments, [each.preset], own + names_of(each)) for each in PRESETS]
    others = (SampleCommand, SampleCommand, ClassifyCommand, ConvertCommand, ExportCommand)
    return presets + [
        (reader(each), ["run", "target.safetensors"][: 1 + (each in others[3:])], names_of(each))
        for each in others
    ]


def lines(number: int) -> st.SearchStrategy[tuple[int, list[str]]]:
    return st.tuples(st.just(number), flags(readers()[number][2]))


@many
@given(st.deferred(lambda: st.integers(0, len(readers()) - 1).flatmap(lines)))
def test_options(surface: Surface, line: tuple[int, list[str]]) -> None:
    """All command lines, as far as they are read before anything else is done."""
    read, given_first, _ = readers()[line[0]]
    with surface.case({}):
        try:
            command = read([*given_first, *line[1]])
        except SystemExit as exit:
            if exit.code:
                raise
            return  # it printed help
        if isinstance(command, TrainCommand):
            assert_types(command.config)


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

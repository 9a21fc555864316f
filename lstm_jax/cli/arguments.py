"""Parse command lines into dataclasses, whose fields are the flags."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

import tyro

T = TypeVar("T")

HELP_ALL = "--help-all"
_MOST_HINTS = 3
# tyro draws a box around an error, in ASCII if the output is not UTF-8.
_FRAME = re.compile(r"[╭╮╰╯│─]+|-{9,}")
_TEXT = re.compile(r"\b(str|Path)\b")


def parse(
    cls: type[T],
    default: T | None,
    arguments: Sequence[str],
    prog: str,
    short_help: str | None = None,
) -> T:
    """Parse a command line into a dataclass whose fields are its flags.

    The flags change `default`, which is None if some are required. A grouped flag may be given by
    its last part (--hidden-size for --model.hidden-size), and a text may begin with dashes, if no
    other flag could be meant. `short_help` is printed by --help; --help-all then prints all flags.

    Raises:
        ValueError: the arguments are wrong; the message is one line.
        SystemExit: after printing help.
    """
    if short_help is not None and not {"-h", "--help"}.isdisjoint(arguments):
        print(short_help.format(prog=prog))
        raise SystemExit
    flags = {"-h": False, "--help": False, **_flags(default or cls)}
    arguments = ["--help" if each == HELP_ALL else each for each in arguments]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                cls,
                default=tyro.MISSING_NONPROP if default is None else default,
                args=_normalised(arguments, flags),
                prog=prog,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
    hints = "".join(f"; {hint}" for hint in _hints(arguments, flags))
    full_help = "--help" if short_help is None else HELP_ALL
    raise ValueError(f"{_message(box.getvalue())}{hints}; see {prog} {full_help}")


def given(flag: str, arguments: Sequence[str]) -> str | None:
    """Value of a flag, or what follows it on the command line; None if it is absent."""
    found = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            found = value if equals else following
    return found


def _message(box: str) -> str:
    lines = [_FRAME.sub(" ", line).strip() for line in box.splitlines()[1:]]
    return " ".join("\n".join(lines).strip().partition("\n\n")[0].split())


def _flags(owner: Any, prefix: str = "--") -> dict[str, bool]:
    """All flags of a dataclass, including nested ones, and whether each takes a text."""
    found: dict[str, bool] = {}
    cls = owner if isinstance(owner, type) else type(owner)
    for name, kind in get_type_hints(cls, include_extras=True).items():
        value, marks = getattr(owner, name, None), getattr(kind, "__metadata__", ())
        # A switch that is on by default is named by what it does.
        flag = f"{prefix}{'no-' * (value is True)}{name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            is_unnamed = any(getattr(mark, "name", None) == "" for mark in marks)
            found |= _flags(value, prefix if is_unnamed else f"{flag}.")
        elif not {tyro.conf.Positional, tyro.conf.Suppress} & set(marks):
            found[flag] = _TEXT.search(str(kind)) is not None
    return found


def _flag(argument: str, flags: Mapping[str, bool]) -> str | None:
    """The flag that an argument names, in full or by an unambiguous last part."""
    name = argument.partition("=")[0].replace("_", "-")
    if name in flags:
        return name
    found = [flag for flag in flags if f"--{flag.rpartition('.')[2]}" == name]
    return found[0] if len(found) == 1 else None


def _normalised(arguments: Sequence[str], flags: Mapping[str, bool]) -> list[str]:
    """The arguments with flags in full, and each text that looks like a flag joined to its flag."""
    meant: list[str] = []
    for argument in arguments:
        flag = _flag(argument, flags) if argument.startswith("-") else None
        if flag is not None:
            _, equals, value = argument.partition("=")
            meant.append(f"{flag}{equals}{value}")
        elif argument.startswith("-") and meant and flags.get(meant[-1]):
            meant[-1] += f"={argument}"
        else:
            meant.append(argument)
    return meant


def _hints(arguments: Sequence[str], flags: Mapping[str, bool]) -> Iterator[str]:
    last, is_next = "", False
    for argument in arguments:
        flag = _flag(argument, flags)
        if argument.startswith("-"):
            if flag is None and (near := _similar_flags(argument, flags)):
                yield f"did you mean {' or '.join(near)}"
            elif flags.get(last) and is_next == (flag is not None):
                yield f"a text that begins with dashes is given as {last}={argument}"
        last, is_next = flag or last, flag is not None and "=" not in argument


def _similar_flags(argument: str, flags: Mapping[str, bool]) -> list[str]:
    """Flags whose name, or its last part, is similar to an argument or begins with it."""
    name = argument.partition("=")[0].replace("_", "-").strip("-")
    if len(name) < 2:
        return []
    parts: dict[str, list[str]] = {}
    for flag in flags:
        last_part = flag.rpartition(".")[2].strip("-")
        initials = "".join(word[0] for word in last_part.split("-"))
        for part in dict.fromkeys((flag.strip("-"), last_part, initials)):
            parts.setdefault(part, []).append(flag)
    near = [part for part in parts if part.startswith(name)]
    near += difflib.get_close_matches(name, parts, cutoff=0.7)
    return list(dict.fromkeys(flag for part in near for flag in parts[part]))[:_MOST_HINTS]

"""Settings as frozen dataclasses whose annotations state the allowed values.

    hidden_size: Size = 128
    dropout: Changeable[Share] = 0.0

`check` validates every field against its annotation, whether the values come from Python code, the
command line or a JSON file.
"""

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from functools import cache
from numbers import Integral, Real
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")

LARGEST_INTEGER = 2**31 - 1  # Integers travel to the device as int32, other numbers as float32


class Bounds(NamedTuple):
    """Range of numbers that a field accepts; infinities and NaN are never accepted."""

    least: float = -math.inf
    most: float = 1e30
    above: float = -math.inf
    below: float = math.inf

    def problem(self, value: Any) -> str:
        """What is wrong with a number, or an empty string."""
        low = f"at least {self.least:g}" if self.above == -math.inf else f"above {self.above:g}"
        high = f" and below {self.below:g}" if self.below < math.inf else ""
        # Comparisons with NaN are False, so each is phrased so that NaN fails.
        if not (value > self.above and value >= self.least and value < self.below):
            return f"must be {low}{high}"
        return "" if value <= self.most else f"must be at most {self.most:.10g}"


class OrInstance(NamedTuple):
    """A field that also takes instances of a class, from Python code alone."""

    cls: type


Count = Annotated[int, Bounds(1, LARGEST_INTEGER)]
CountOrZero = Annotated[int, Bounds(0, LARGEST_INTEGER)]
Size = Annotated[int, Bounds(1, 2**16)]
"""Size of a layer; beyond it, a single matrix exceeds the memory of any device."""
SizeOrZero = Annotated[int, Bounds(0, 2**16)]
Positive = Annotated[float, Bounds(above=0)]
PositiveOrZero = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, below=1)]

MAY_CHANGE, OF_THE_VOCABULARY = "may change on resuming", "of the vocabulary"
Changeable = Annotated[T, MAY_CHANGE]
"""A resumed run may change this field, or all fields of this group."""
Vocabular = Annotated[T, OF_THE_VOCABULARY]
"""A run initialised from another's weights must keep this value, as it must all of `model`."""


class Checked:
    """Base of dataclasses that are validated on construction; see `check`."""

    def __post_init__(self) -> None:
        check(self)


def check(settings: Any) -> None:
    """Validate a dataclass's fields against their annotations.

    Raises:
        ValueError: names the first invalid field, its value, and what is allowed.
    """
    _check_values(type(settings), vars(settings))


def from_json(cls: type[T], values: Any, prefix: str = "") -> T:
    """Rebuild a dataclass from the JSON values of `dataclasses.asdict`.

    Fields missing from `values`, as in a file of an older version, take their defaults.

    Raises:
        ValueError: an unknown field or an invalid value (see `check`), named with `prefix`.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} is {values!r:.60}; expected a JSON object")
    plain: Any = cls
    kinds = _kinds(plain)
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(
                f"unknown field {prefix + name!r}; was this written by a newer version?"
            )
        group = getattr(kinds[name], "__origin__", kinds[name])
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            built[name] = from_json(group, value, f"{prefix}{name}.")
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    _check_values(cls, built, prefix)
    return cls(**built)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested JSON values into dotted names, such as `model.hidden_size`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def marked(cls: Any, mark: str, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that carry `mark`; a marked group counts as one field."""
    for name, kind in _kinds(cls).items():
        if mark in getattr(kind, "__metadata__", ()):
            yield prefix + name
        elif dataclasses.is_dataclass(kind):
            yield from marked(kind, mark, f"{prefix}{name}.")


def _check_values(cls: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    kinds = _kinds(cls)
    for name, value in values.items():
        if problem := _problem(value, kinds[name]):
            raise ValueError(f"{prefix}{name} is {value!r:.60}; it {problem}")


@cache
def _kinds(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _problem(value: Any, kind: Any) -> str:
    """What is wrong with the value of an annotated field, or an empty string."""
    marks = getattr(kind, "__metadata__", ())
    if any(isinstance(mark, OrInstance) and isinstance(value, mark.cls) for mark in marks):
        return ""
    plain = kind.__origin__ if marks else kind
    if get_origin(plain) in (types.UnionType, Union):
        problems = [_problem(value, each) for each in get_args(plain)]
        # For an optional number, the numeric problem says more than "must be None".
        return "" if "" in problems else problems[0]
    if not _is_of(value, plain):
        text = "a text, " * (get_origin(plain) is Literal and not isinstance(value, str))
        return f"must be {text}{_shown(plain)}"
    bounds = (mark for mark in marks if isinstance(mark, Bounds))
    return next(filter(None, (each.problem(value) for each in bounds)), "")


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(each, get_args(kind)[0]) for each in value)
    if kind in (int, float):  # bool is a subclass of int
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, kind)


def _shown(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "texts"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))

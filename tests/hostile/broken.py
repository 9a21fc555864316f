"""Three strategies that break what is valid: bytes, trees of JSON values, command lines."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = ("", " ", "x", "0", "-1", "nan", "inf", "1e999", "1_0", "0x1p3", "\0", "\ud800",
             "\udc80", "\ufeff", "\u2028", "\u202e", "e\u0301", "\u0663", "\U0001f600",
             "../../escaped", "/dev/zero", "/etc/passwd", ".", "a\r\nb", "*", "|O", "<f8",
             "a" * 5_000)  # fmt: skip
"""Texts that programs stumble over."""

_ODD_VALUES = (None, True, False, 0, 1, -1, 513, 2**31, 2**33, 2**63, -(2**63), 10**30, 10**400,
               0.5, -0.0, 1e308, math.inf, -math.inf, math.nan, [], {}, [[]], [None], [1, "x"],
               {"": 0}, ["a"] * 1_000)  # fmt: skip
"""Values that programs stumble over; the numbers that are not finite are no JSON, but are read."""

_ODD_BYTES = (b"\0", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
              b"\xc0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\r", b"\r\n", b"\n\n", b"\x1a",
              b"\x1b[2J", b"\xe2\x80\xa8", b" ", b"\t", b'"', b"'", b",", b":", b"\\", b"*", b"NaN",
              b"1e999", b"-1", b"9" * 5_000)  # fmt: skip
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gb18030")
_DEEP, _LONG_NUMBER = "@deep@", "@digits@"

ODD_ARGUMENTS = ("", " ", "0", "1", "-1", "2", "1.5", "1e3", "1e400", "-1e400", "nan", "inf",
                 "-inf", "1_000", "0x10", "\u0663", "9" * 30, "-" + "9" * 30, "9" * 400,
                 "9" * 5_000, "true", "None", "none", "[]", "{}", "--", "-", "=", "x", "Ω",
                 "e\u0301", "\U0001f600", "\udc80", "a\0b", "a\nb", "a" * 5_000, "../..",
                 "/dev/null", "newest", "lstm", "float32")  # fmt: skip
"""What a flag may be given."""


Choose = Callable[[Sequence[Any]], Any]
"""One of several: which, Hypothesis says."""


def rarely(often: Any, rare: Any, out_of: int) -> st.SearchStrategy[Any]:
    """The second of two strategies, one time out of so many."""
    return st.integers(1, out_of).flatmap(lambda turn: often if turn < out_of else rare)


@st.composite
def broken_bytes(draw: st.DrawFn, valid: bytes, at_most: int = 4) -> bytes:
    """The bytes after one to so many mutations, one after the other."""
    for _ in range(draw(st.integers(1, at_most))):
        valid = _mutated(draw, valid)
    return valid


def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    end = min(len(data), at + draw(st.sampled_from((1, 4, 40, len(data)))))
    before, part, after = data[:at], data[at:end], data[end:]
    match draw(st.integers(0, 10)):
        case 0 | 1 if part:
            return before + bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:] + after
        case 2:
            return before
        case 3:
            return before + after
        case 4:
            times = draw(st.sampled_from((1, 2, 10, 100)))
            return before + part * (1 + min(times, 1 + 20_000 // (len(part) + 1))) + after
        case 5:
            return after + part + before
        case 6:
            return before + draw(st.binary(min_size=1, max_size=64)) + data[at:]
        case 7:
            ends = (b"\r\n", b"\r", b"\n\n", b"", b"\0\n", b" \n")
            return data.replace(b"\n", draw(st.sampled_from(ends)))
        case 8:
            text = data.decode("utf-8", errors="replace")
            return text.encode(draw(st.sampled_from(_ENCODINGS)), errors="replace")
    first = draw(st.sampled_from((0, at, len(data))))
    return data[:first] + draw(st.sampled_from(_ODD_BYTES)) + data[first:]


@st.composite
def broken_tree(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a tree of JSON values in which a few places hold something else, or nothing."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 5)))):
        holder, key = draw(st.sampled_from(_places(root)))
        old = holder[key]
        match draw(st.integers(0, 6)):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(st.sampled_from(ODD_TEXTS))] = holder.pop(key)
            case 2:
                holder[key] = draw(
                    st.sampled_from((_DEEP, _LONG_NUMBER, [old], {"x": old}, str(old)))
                )
            case 3:
                holder[key] = draw(st.sampled_from(ODD_TEXTS))
            case 4 if isinstance(old, list):
                holder[key] = old * draw(st.sampled_from((0, 2, 50)))
            case 5 if isinstance(old, str) and len(old) < 200:
                broken = draw(broken_bytes(old.encode(errors="surrogatepass"), 1))
                holder[key] = broken.decode(errors="surrogateescape")
            case _:
                holder[key] = copy.deepcopy(draw(st.sampled_from(_ODD_VALUES)))
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Each place that holds a value: its container, and the index or name there."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 50))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def json_bytes(value: Any, indent: int | None = None, times: int = 1, depth: int = 1_000) -> bytes:
    """The value as a file, its names so many times; there may be deep nesting, a long number."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    text = text.replace(f'"{_LONG_NUMBER}"', "9" * 5_000)
    if text.startswith("{") and len(text) > 2:
        text = "{" + ",".join([text[1:-1]] * times) + "}"
    return text.encode("utf-8", errors="surrogatepass")


def encoded(text: str, choose: Choose) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def as_json(value: Any, choose: Choose) -> bytes:
    return json_bytes(value, choose((None, 2)), choose((1, 1, 1, 2)), choose((50, 1_000, 100_000)))


@st.composite
def odd_flags(draw: st.DrawFn, names: Sequence[str]) -> list[str]:
    """A few of these flags with values, most of them odd."""
    arguments: list[str] = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        flag, value = draw(st.sampled_from(names)), draw(st.sampled_from(ODD_ARGUMENTS))
        underscored = flag.replace("-", "_").replace("__", "--", 1)
        ways = ([flag], [value], [underscored, value], [flag[:-1], value], [flag, value, value],
                [f"{flag}={value}"], [f"{flag}={value}"], [flag, value], [flag, value],
                [flag, value])  # fmt: skip
        arguments += draw(st.sampled_from(ways))
    return arguments

"""Strategies that break what is valid: bytes, texts, JSON values."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from hypothesis import strategies as st

PROSE = (
    "The quick brown fox — it's well-known — jumps over 13 lazy dogs.\n"
    "« Où es-tu ? » 分开 不分开\n\n<br />Don’t stop: naïve façades, e\u0301te\u0301.\n"  # noqa: RUF001
)
POEMS = "春:春眠不觉晓\n夜：夜来风雨声\nempty:\nno colon\n靜夜思:床前明月光，疑是地上霜。\n"  # noqa: RUF001
"""Valid texts."""

ODD_TEXTS = ("", " ", "x", "0", "nan", "\0", "\ud800", "\udc80", "\ufeff", "\u2028", "\u202e",
             "e\u0301", "\U0001f600", "../../escaped", "/dev/zero", "a\r\nb", "*", "\u0663",
             "a" * 5_000)  # fmt: skip
"""Texts that programs stumble over."""

_ODD_VALUES = (None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0,
               1e308, math.inf, -math.inf, math.nan, [], {}, [[]], [None], [1, "x"], {"": 0},
               ["a"] * 1_000)  # fmt: skip
"""Values that programs stumble over; the numbers that are not finite are no JSON, but are read."""

_ODD_BYTES = (b"\0", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
              b"\xc0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\r", b"\r\n", b"\n\n", b"\x1a",
              b"\x1b[2J", b"\xe2\x80\xa8", b" ", b"\t", b'"', b"'", b",", b":", b"\\", b"*", b"NaN",
              b"1e999", b"-1", b"9" * 5_000)  # fmt: skip
_DEEP, _LONG_NUMBER = "@deep@", "@digits@"
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gb18030")


def rarely(often: Any, rare: Any, out_of: int = 20) -> st.SearchStrategy[Any]:
    """The second of two strategies, one time out of so many."""
    return st.integers(1, out_of).flatmap(lambda turn: often if turn < out_of else rare)


@st.composite
def broken_bytes(draw: st.DrawFn, valid: bytes, at_most: int = 4) -> bytes:
    """The bytes after one to so many mutations, one after the other."""
    for _ in range(draw(st.integers(1, at_most))):
        valid = _mutated(draw, valid)
    return valid


def perhaps_broken(valid: bytes) -> st.SearchStrategy[bytes]:
    """The bytes themselves, one time in four."""
    return rarely(broken_bytes(valid), st.just(valid), 4)


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
def broken_text(draw: st.DrawFn, text: str) -> str:
    """The text with odd characters in it, lone surrogates among them."""
    odd = st.sampled_from(ODD_TEXTS) | st.text(st.characters(), min_size=1, max_size=8)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(odd) + text[at + draw(st.sampled_from((0, 0, 1, 10))) :]
    return text


@st.composite
def broken_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy of the value in which a few places hold something else, or nothing."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 5)))):
        holder, key = draw(st.sampled_from(_places(root)))
        old = holder[key]
        match draw(st.integers(0, 5)):
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


@st.composite
def json_bytes(draw: st.DrawFn, value: Any) -> bytes:
    """The value as a file; sometimes a name twice, deep nesting, a number of 5,000 digits."""
    text = json.dumps(
        value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from((None, 0, 2)))
    )
    depth = draw(st.sampled_from((50, 1_000, 100_000))) if _DEEP in text else 0
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    text = text.replace(f'"{_LONG_NUMBER}"', "9" * 5_000)
    if draw(rarely(st.just(False), st.just(True))) and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:-1] + "}"
    return text.encode("utf-8", errors="surrogatepass")

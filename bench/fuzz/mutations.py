"""Ways to break what is valid: bytes, text, JSON values."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

Json = Any

ODD_TEXTS = (
    "",
    " ",
    "x",
    "0",
    "nan",
    "\0",
    "\ud800",
    "\udc80",
    "\ufeff",
    "\u2028",
    "\u202e",
    "e\u0301",
    "\U0001f600",
    "../../escaped",
    "/dev/zero",
    "a\r\nb",
    "*",
    "\u0663",
    "a" * 5_000,
)
"""Texts that programs stumble over."""

ODD_VALUES: tuple[Json, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    [],
    {},
    [[]],
    [None],
    [1, "x"],
    {"": 0},
    ["a"] * 1_000,
)
"""Values that programs stumble over; the numbers that are not finite are no JSON, but are read."""

_DEEP = "@deep@"
_LONG_NUMBER = "@digits@"
_ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf5\x80\x80\x80",
    b"\x80",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\x1a",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
    b" ",
    b"\t",
    b'"',
    b"'",
    b",",
    b":",
    b"\\",
    b"*",
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 5_000,
)


def broken_bytes(rng: Random, data: bytes, *, at_most: int = 4) -> bytes:
    """The bytes after one to so many mutations, one after the other."""
    for _ in range(rng.randint(1, at_most)):
        data = rng.choice(_BYTE_MUTATIONS)(rng, data)
    return data


def _flipped(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _without_part(rng: Random, data: bytes) -> bytes:
    first, end = _part(rng, data)
    return data[:first] + data[end:]


def _repeated_part(rng: Random, data: bytes) -> bytes:
    first, end = _part(rng, data)
    times = rng.choice((1, 2, 10, 100))
    return data[:end] + data[first:end] * min(times, 1 + 20_000 // (end - first + 1)) + data[end:]


def _swapped_parts(rng: Random, data: bytes) -> bytes:
    first, end = _part(rng, data)
    return data[end:] + data[first:end] + data[:first]


def _inserted(rng: Random, data: bytes) -> bytes:
    at = rng.choice((0, len(data), rng.randint(0, len(data))))
    return data[:at] + rng.choice(_ODD_BYTES) + data[at:]


def _random_bytes(rng: Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]


def _other_line_ends(rng: Random, data: bytes) -> bytes:
    return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"", b"\0\n", b" \n")))


def _other_encoding(rng: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", errors="replace")
    name = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gb18030"))
    return text.encode(name, errors="replace")


def _part(rng: Random, data: bytes) -> tuple[int, int]:
    first = rng.randint(0, len(data))
    return first, min(len(data), first + rng.choice((1, 4, 40, len(data))))


_BYTE_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flipped,
    _flipped,
    _cut,
    _without_part,
    _repeated_part,
    _swapped_parts,
    _inserted,
    _inserted,
    _random_bytes,
    _other_line_ends,
    _other_encoding,
)


def broken_text(rng: Random, text: str) -> str:
    """The text with odd characters in it, lone surrogates among them."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        odd = rng.choice(ODD_TEXTS)
        if rng.random() < 0.3:
            odd = "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000))))
                          for _ in range(rng.randint(1, 8)))  # fmt: skip
        text = text[:at] + odd + text[at + rng.choice((0, 0, 1, 10)) :]
    return text


def broken_json(rng: Random, value: Json) -> Json:
    """A copy of the value in which a few places hold something else, or nothing."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        holder, key = rng.choice(_places(root))
        _break_place(rng, holder, key)
    return root[0]


def json_bytes(rng: Random, value: Json) -> bytes:
    """The value as a file; sometimes a name twice, deep nesting, a number of 5,000 digits."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 0, 2)))
    depth = rng.choice((50, 1_000, 100_000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    text = text.replace(f'"{_LONG_NUMBER}"', "9" * 5_000)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = "{" + text[1:-1] + "," + text[1:-1] + "}"
    return text.encode("utf-8", errors="surrogatepass")


def _places(root: list[Json]) -> list[tuple[Any, Any]]:
    """Each place that holds a value: its container, and the index or name there."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 50))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


def _break_place(rng: Random, holder: Any, key: Any) -> None:
    old = holder[key]
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(ODD_TEXTS)] = holder.pop(key)
        case 2:
            holder[key] = rng.choice((_DEEP, _LONG_NUMBER, [old], {"x": old}, str(old)))
        case 3:
            holder[key] = rng.choice(ODD_TEXTS)
        case 4 if isinstance(old, list):
            holder[key] = old * rng.choice((0, 2, 50))
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))

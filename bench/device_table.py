"""Table of the rows of `bench device`: our best way beside the best peer, and the bars."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peers import OURS

Rows = Sequence[Mapping[str, Any]]

_BARS = {
    "100,100,512,512 x 2": 2.0,
    "35,32,256,256": 1.5,
    "gru 1024,64,768,768": 1.5,
    "lstm 1024,16,768,768": 1.0,
}
"""Best peer's time / ours, forward and backward, by the end of the layer's name."""

_STEP_BAR = 1.5
_SLOW, _SLOW_BAR = "flax-nnx", 5.0
_FLAGS, _FLAGS_BAR = " flags", 1.1


def rows_in(file: Path) -> list[dict[str, Any]]:
    """Rows of a file, without lines that were cut off."""
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and row.get("bench") == "device"]


def table(rows: Rows) -> Iterator[str]:
    """Environment, a line per computation and dtype, and what failed and why."""
    for row in [row for row in rows if "device" in row][:1]:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        yield f"{row['device']} {row.get('card', '')}, {row['date']}: {versions}"
    for row in rows:
        if "unit" in row:
            yield f"{row['system']} {row['dtype']}: {row['rate']:,.4g} {row['unit']}"
        elif "told" in row:
            yield f"{row['system']}: {row['told']}"
    limits = {row["dtype"]: row["rate"] for row in rows if row.get("unit") == "TFLOP/s"}
    works: defaultdict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if "call" in row:
            works[row["call"], row["system"], row["dtype"]].append(row)
    for (call, system, dtype), found in sorted(works.items()):
        yield f"{call} {system} {dtype}: " + "; ".join(
            _told(call, system, found, limits.get(dtype))
        )
        plain = _best(works.get((call, system.removesuffix(_FLAGS), dtype), []))
        if system.endswith(_FLAGS) and plain:
            cost = _best(found)["median_ms"] / plain["median_ms"]
            yield f"  {cost:.2f} of it without masks and resets{_against(cost, _FLAGS_BAR, -1)}"
    failures: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if "failed" in row:
            where = f"{row['system']} {row.get('dtype', '')}".rstrip()
            failures[row.get("implementation", ""), row["failed"]].append(where)
    for (name, reason), works_of_it in failures.items():
        yield f"no time: {name} {reason} ({', '.join(works_of_it)})"


def _told(call: str, system: str, rows: Rows, limit: float | None) -> Iterator[str]:
    ours, peer = _best(rows), _best(rows, ours=False)
    for row in filter(None, (ours, peer)):
        spread = f"[{row['p10_ms']:.3g}, {row['p90_ms']:.3g}]"
        rate = f"{row['tokens_per_second']:,.0f}/s"
        yield f"{row['implementation']} {row['median_ms']:.3g} ms {spread} {rate}"
    if not ours:
        return
    if ours["flops"] and limit:
        yield f"{ours['flops'] / ours['median_ms'] / 1e9 / limit:.1%} of the card's products"
    bar = _STEP_BAR if call == "step" else None
    if call == "pass":
        bar = next((bar for name, bar in _BARS.items() if system.endswith(name)), None)
    slow = {row["implementation"]: row for row in rows}.get(_SLOW)
    for row, least in ((peer, bar), (slow, _SLOW_BAR if call == "pass" else None)):
        if row:
            ratio = row["median_ms"] / ours["median_ms"]
            yield f"{row['implementation']} / ours {ratio:.2f}{_against(ratio, least)}"


def _best(rows: Rows, *, ours: bool = True) -> Any:
    """Fastest row of ours or of the peers; None if there is none."""
    found = [row for row in rows if row["implementation"].startswith(OURS) == ours]
    return min(found, key=lambda row: row["median_ms"], default=None)


def _against(number: float, bar: float | None, sign: int = 1) -> str:
    return f", bar {bar}: {'met' if sign * (number - bar) >= 0 else 'not met'}" if bar else ""

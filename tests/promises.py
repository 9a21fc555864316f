"""What tests of faults and of hostile inputs count: tables, printed and put into a document."""

import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

HEADS = {
    "faults": ("fault", "tried", "as promised", "what was seen"),
    "hostile": ("surface", "cases", "refused by one line", "accepted and right"),
}
"""The tables' heads, by the names under which tests record rows as properties of theirs."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows in Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    shown = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def replaced(document: str, name: str, text: str) -> str:
    """A document whose part between the two markers of this name is `text`.

    Raises:
        ValueError: it has not both markers, each once, in their order.
    """
    first, last = (f"<!-- table of {name}: {end} -->" for end in ("begin", "end"))
    before, *found = re.split(f"({first}|{last})", document)
    if found[::2] != [first, last]:
        raise ValueError(f"expected {first!r} and {last!r} once each, in this order")
    return f"{before}{first}\n{text}\n{last}{found[-1]}"


def document_with_tables(path: str) -> Path:
    """A path of such a document, which is looked at before anything is run.

    Raises:
        ValueError: it lacks a marker.
    """
    text = Path(path).read_text(encoding="utf-8")
    for name in HEADS:
        replaced(text, name, "")
    return Path(path)


def write_tables(reports: Iterable[pytest.TestReport], document: Path) -> str:
    """Puts the rows that tests recorded into a document, but where one failed; gives the tables."""
    reports = list(reports)
    tables = {}
    for name, heads in HEADS.items():
        rows = [row for each in reports for key, row in each.user_properties if key == name]
        if name == "hostile" and rows:
            sums: dict[str, np.ndarray] = {}
            for surface, *numbers in rows:
                sums[surface] = sums.get(surface, 0) + np.array(numbers)
            sums["all"] = sum(sums.values())
            rows = [[surface, *found.tolist()] for surface, found in sums.items()]
        if rows:
            ran_on = f"Python {platform.python_version()}, jax {jax.__version__}, on a CPU."
            tables[name] = f"{table(heads, rows)}\n\n{ran_on}"
    if all(each.passed for each in reports):
        text = document.read_text(encoding="utf-8")
        for name, found in tables.items():
            text = replaced(text, name, found)
        document.write_text(text, encoding="utf-8")
    return "\n\n".join(tables.values())

"""What came of all cases: a table, and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.fuzz.trial import Outcome

_HEADS = ("surface", "cases", "refused cleanly", "accepted", "findings")


@dataclass
class Tally:
    """What came of a surface's cases.

    Attributes:
        surface: its name.
        verdicts: how often each.
        findings: the number of the case, and all that is known of it.
    """

    surface: str
    verdicts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str]] = field(default_factory=list)

    def count(self, case: str, outcome: Outcome) -> None:
        """Takes in what came of a case."""
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict == "finding":
            self.findings.append((case, outcome.detail))

    def as_json(self) -> dict[str, Any]:
        """The tally as JSON values."""
        return {
            "surface": self.surface,
            "cases": self.verdicts.total(),
            "refused": self.verdicts["refused"],
            "accepted": self.verdicts["accepted"],
            "findings": [{"case": case, "detail": detail} for case, detail in self.findings],
        }


def table(tallies: Iterable[Tally]) -> str:
    """The tallies in Markdown, and their sum."""
    rows = [[tally.surface, *_numbers(tally.verdicts)] for tally in tallies]
    whole: Counter[str] = sum((tally.verdicts for tally in tallies), Counter())
    lines = [_HEADS, ["---"] * len(_HEADS), *rows, ["all", *_numbers(whole)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numbers(verdicts: Counter[str]) -> list[str]:
    counts = verdicts.total(), verdicts["refused"], verdicts["accepted"], verdicts["finding"]
    return [f"{count:,}" for count in counts]

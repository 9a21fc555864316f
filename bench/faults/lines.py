"""Lines of the table of faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

BEGIN = "<!-- table of bench.faults: begin -->"
END = "<!-- table of bench.faults: end -->"
_HEADS = ("fault", "tried", "as promised", "what was seen")


@dataclass(frozen=True)
class Line:
    """One kind of fault.

    Attributes:
        fault: what was done.
        tried: how often; 0 where it can't be done here.
        failures: a line for each time that something other than what is promised came of it.
        seen: figures besides; why, where it was not tried.
    """

    fault: str
    tried: int
    failures: tuple[str, ...]
    seen: str

    @property
    def held(self) -> int:
        """How often what is promised came true."""
        return self.tried - len(self.failures)

    def as_json(self) -> dict[str, Any]:
        """The line as JSON values."""
        return {
            "fault": self.fault,
            "tried": self.tried,
            "held": self.held,
            "failures": list(self.failures),
            "seen": self.seen,
        }


def table(lines: Iterable[Line]) -> str:
    """The lines in Markdown."""
    rows = [(line.fault, f"{line.tried:,}", f"{line.held:,}", line.seen) for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in (_HEADS, ("---",) * len(_HEADS), *rows))


def replaced(document: str, text: str) -> str:
    """A document whose part between the two markers is `text`.

    Raises:
        ValueError: it has not both markers, each once, in their order.
    """
    before, found, rest = document.partition(BEGIN)
    inside, ended, after = rest.partition(END)
    if not (found and ended) or BEGIN in inside + after or END in before + after:
        raise ValueError(f"expected {BEGIN!r} and {END!r} once each, in this order")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def failures(lines: Sequence[Line]) -> list[str]:
    """What was not as promised, one line each."""
    return [f"{line.fault}: {failure}" for line in lines for failure in line.failures]

"""What the benchmark commands share: options, and saving and drawing of rows."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.peers import PEERS
from bench.plot import draw, require_matplotlib
from bench.report import Row, print_environment, writing
from bench.shapes import StoredDType
from lstm_jax.settings import Count, check

QUICK_ROUNDS = 2

Measured = tuple[list[Row], bool]
"""Rows, and whether every installed peer did the same work as ours."""


@dataclass(frozen=True)
class Options:
    """Options of every benchmark of time or memory."""

    dtype: StoredDType = "float32"  # dtype of the matrix products.
    #: number of turns per implementation, each a quarter of a second or one call.
    rounds: Count = 20
    quick: bool = False  # a first look, with few rounds and fewer large cases.
    json: Path | None = None  # file for the rows, one per line.
    plot: Path | None = None  # file for a picture of them.

    def __post_init__(self) -> None:
        check(self)
        require_matplotlib(self.plot)

    @property
    def turns(self) -> int:
        return min(self.rounds, QUICK_ROUNDS) if self.quick else self.rounds


@dataclass(frozen=True)
class OptionsWithPeers(Options):
    """Options of every benchmark with peers."""

    #: peers to measure; one that is not installed is reported and left out.
    peers: tuple[str, ...] = tuple(PEERS)
    known: ClassVar[Collection[str]] = PEERS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.peers:
            if name not in self.known:
                raise ValueError(f"there is no peer {name!r}; choose from {', '.join(self.known)}")


def measure(options: Options, parts: Iterable[Measured]) -> int:
    """Measure part after part, saving rows at once; 1 if a peer failed or did other work."""
    print_environment()
    rows: list[Row] = []
    all_agree = True
    with writing(options.json) as write:
        for part, agrees in parts:
            rows += part
            all_agree &= agrees
            for row in part:
                write(row.kept())
    if options.plot is not None:
        draw(rows, options.plot)
    return 0 if all_agree else 1

"""What the benchmark commands share: options, and saving and drawing of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import PEERS, require_peers
from bench.plot import draw, require_matplotlib
from bench.report import Row, print_environment, writing
from bench.shapes import StoredDType
from lstm_jax.settings import Count, check

QUICK_ROUNDS = 2

Measured = tuple[list[Row], bool]
"""Rows, and whether every installed peer did the same work as ours."""


@dataclass(frozen=True)
class Options:
    """Options of every benchmark of time or memory.

    Attributes:
        dtype: dtype of the matrix products.
        rounds: number of turns per implementation, each a quarter of a second or one call.
        quick: a first look, with few rounds and fewer large cases.
        json: file for the rows, one per line.
        plot: file for a picture of them.
    """

    dtype: StoredDType = "float32"
    rounds: Count = 20
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        check(self)
        require_matplotlib(self.plot)

    @property
    def turns(self) -> int:
        return min(self.rounds, QUICK_ROUNDS) if self.quick else self.rounds


@dataclass(frozen=True)
class OptionsWithPeers(Options):
    """Options of every benchmark with peers.

    Attributes:
        peers: peers to measure; one that is not installed is reported and left out.
    """

    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_peers(self.peers, tuple(PEERS))


def measure(options: Options, parts: Iterable[Measured]) -> int:
    """Measure part after part, saving the rows of each at once, and draw all of them.

    Returns:
        The exit code: 1 if a peer failed or did other work than ours.
    """
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

"""What the commands of the benches share: their options, and what becomes of their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import PEERS, require_peers
from bench.plot import draw, require_matplotlib
from bench.report import Row, print_environment, writing
from bench.shapes import DType
from lstm_jax.settings import Count, check

QUICK_ROUNDS = 2

Measured = tuple[list[Row], bool]
"""Rows, and whether every peer that is installed did the same work as ours."""


@dataclass(frozen=True)
class Options:
    """What every bench of time or memory takes.

    Attributes:
        dtype: of the matrix products.
        rounds: turns of about a quarter of a second, or one call, that each implementation has.
        quick: a first look: few rounds, and less of what is large.
        json: where to write the rows, one a line.
        plot: where to draw them.
    """

    dtype: DType = "float32"
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
    """And every bench with peers.

    Attributes:
        peers: which peers; one that is not installed is named and left out.
    """

    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_peers(self.peers, tuple(PEERS))


def measure(options: Options, parts: Iterable[Measured]) -> int:
    """Measures part after part; keeps the rows of each as soon as they are there, and draws all.

    Returns:
        The exit code: 1 if a peer did other work than ours, or failed.
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

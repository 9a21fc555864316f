"""Ours and its peers at the same work, timed in turns; who does other work takes no part."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TextIO, TypeVar

from bench import report
from bench.agreement import Disagreement
from bench.environment import Environment, environment
from bench.measure import interleave, seconds
from bench.peers import find_installed
from bench.plot import draw_times
from bench.products import Floor, Product, with_limit
from bench.shapes import AnySystem, DType, LayerShape

_QUICK_ROUNDS = 2
_DISAGREES = 1


class Named(Protocol):
    """An implementation of any kind of work."""

    @property
    def name(self) -> str:
        """What the rows call it."""


class Options(Protocol):
    """The options that a contest needs."""

    @property
    def dtype(self) -> DType:
        """Of the matrix products."""

    @property
    def rounds(self) -> int:
        """Turns that each implementation has."""

    @property
    def quick(self) -> bool:
        """Whether few rounds are enough."""

    @property
    def json(self) -> Path | None:
        """Where to write the rows."""

    @property
    def plot(self) -> Path | None:
        """Where to draw the times."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Which peers."""


AnyPart = TypeVar("AnyPart")
AnyOptions = TypeVar("AnyOptions", bound=Options)
Implementation = TypeVar("Implementation", bound=Named)
Taken = TypeVar("Taken")
Measured = tuple[list[report.Row], bool]
"""Rows, and whether every peer that is installed did the same work as ours."""


class Admitted(NamedTuple, Generic[Taken]):
    """Who takes part.

    Attributes:
        peers: what each was taken in as.
        left_out: the others, and why.
        all_agree: whether none of them does other work than ours.
    """

    peers: list[Taken]
    left_out: dict[str, str]
    all_agree: bool


def admit(
    installed: Sequence[Implementation],
    missing: Mapping[str, str],
    take: Callable[[Implementation], Taken],
    system: str,
    out: TextIO,
) -> Admitted[Taken]:
    """Takes in the peers that run here and do the same work as ours, and prints who is left out.

    Args:
        installed: the peers that may take part.
        missing: those that cannot, and why; see `find_installed`.
        take: raises Disagreement where a peer does other work, ValueError where it cannot run.
        system: what is measured.
        out: where to print.
    """
    peers, left_out, all_agree = [], dict(missing), True
    for peer in installed:
        try:
            peers.append(take(peer))
        except Disagreement as reason:
            all_agree = False
            left_out[peer.name] = f"does other work: {reason}"
        except ValueError as reason:
            left_out[peer.name] = f"cannot run here: {reason}"
    for name, why in left_out.items():
        print(f"{system}: {name} is left out: {why}", file=out, flush=True)
    return Admitted(peers, left_out, all_agree)


class Built(NamedTuple):
    """What an implementation makes of the work.

    Attributes:
        run: does it once; returns when all is done.
        settings: what was chosen to make it fast.
        evidence: shows what it does, to be compared with what ours shows.
    """

    run: Callable[[], object]
    settings: Mapping[str, str]
    evidence: Callable[[], Any]


class _Entrant(NamedTuple):
    name: str
    built: Built
    first_s: float


@dataclass(frozen=True)
class Contest(Generic[Implementation]):
    """Work that is timed.

    Attributes:
        bench: the bench's name.
        shape: of the work; its name is the system's in the rows.
        tokens: of one call.
        products: its matrix products, which set the limit.
        build: puts the work in an implementation's own form.
        require_same: (a peer's evidence, ours, dtype); raises Disagreement where they differ.
    """

    bench: str
    shape: LayerShape | AnySystem
    tokens: int
    products: Mapping[Product, int]
    build: Callable[[Implementation], Built]
    require_same: Callable[[Any, Any, DType], None]

    def measure(
        self,
        ours: Implementation,
        peer_named: Callable[[str], Implementation],
        options: Options,
        found: Environment,
        out: TextIO,
    ) -> Measured:
        """Times ours and the peers that do the same work, and prints it.

        Args:
            ours: our implementation.
            peer_named: a peer by its name; see `find_installed`.
            options: all but `json` and `plot`.
            found: what the process runs on.
            out: where to print.
        """
        installed, missing = find_installed(options.peers, peer_named)
        us = self._enter(ours)
        our_evidence = cache(us.built.evidence)

        def take(peer: Implementation) -> _Entrant:
            entrant = self._enter(peer)
            self.require_same(entrant.built.evidence(), our_evidence(), options.dtype)
            return entrant

        admitted = admit(installed, missing, take, self.shape.name, out)
        rows = self._rows([us, *admitted.peers], admitted.left_out, options, found)
        report.print_table(rows, out)
        return rows, admitted.all_agree

    def _enter(self, implementation: Implementation) -> _Entrant:
        built = self.build(implementation)
        # Its first call, before anything else of this shape has run: compilation is part of it.
        return _Entrant(implementation.name, built, seconds(built.run))

    def _rows(
        self,
        entrants: Sequence[_Entrant],
        left_out: Mapping[str, str],
        options: Options,
        found: Environment,
    ) -> list[report.Row]:
        floor = Floor(self.products, options.dtype)
        calls = {each.name: each.built.run for each in entrants}
        rounds = min(options.rounds, _QUICK_ROUNDS) if options.quick else options.rounds
        timings = interleave(calls | floor.calls, rounds)
        rows = [
            report.make_row(
                found,
                timings[each.name],
                bench=self.bench,
                system=self.shape.name,
                implementation=each.name,
                dtype=options.dtype,
                tokens=self.tokens,
                first_s=each.first_s,
                settings=each.built.settings,
                shape=dataclasses.asdict(self.shape),
                peers_left_out=left_out,
            )
            for each in entrants
        ]
        return report.with_ratios([with_limit(row, floor, timings) for row in rows])


def run(
    parts: Iterable[AnyPart],
    measure: Callable[[AnyPart, AnyOptions, Environment, TextIO], Measured],
    options: AnyOptions,
) -> int:
    """Measures one part after the other, writes and draws the rows; 1 if a peer did other work."""
    agree: list[bool] = []

    def measured(found: Environment) -> Iterator[list[report.Row]]:
        for part in parts:
            rows, agrees = measure(part, options, found, sys.stdout)
            agree.append(agrees)
            yield rows

    found = environment()
    report.print_environment(found, sys.stdout)
    rows = report.collect(measured(found), options.json)
    if options.plot is not None:
        draw_times(rows, options.plot)
    return 0 if all(agree) else _DISAGREES

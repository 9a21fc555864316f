"""Ours and its peers at the same work, timed in turns; who does other work takes no part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TextIO, TypeVar

from bench import report
from bench.agreement import Disagreement
from bench.environment import Environment
from bench.implementation import Implementation, LayerImplementation, SamplingImplementation
from bench.measure import interleave, seconds
from bench.plot import draw_times
from bench.products import Floor, Product, with_limit
from bench.shapes import AnySystem, DType, LayerShape

QUICK_ROUNDS = 2
_DISAGREES = 1


Implementer = TypeVar(
    "Implementer", bound=Implementation | LayerImplementation | SamplingImplementation
)
Taken = TypeVar("Taken")
Measured = tuple[list[report.Row], bool]
"""Rows, and whether every peer that is installed did the same work as ours."""


def admit(
    installed: Sequence[Implementer],
    missing: Mapping[str, str],
    take: Callable[[Implementer], Taken],
    system: str,
    out: TextIO,
) -> tuple[list[Taken], dict[str, str], bool]:
    """Takes in the peers that run here and do the same work as ours, and prints who is left out.

    Args:
        installed: the peers that may take part.
        missing: those that cannot, and why; see `find_installed`.
        take: raises Disagreement where a peer does other work, ValueError where it cannot run.
        system: what is measured.
        out: where to print.

    Returns:
        What the peers were taken in as; who is left out, and why; whether none does other work.
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
    return peers, left_out, all_agree


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
class Contest(Generic[Implementer]):
    """Work that is timed.

    Attributes:
        bench: the bench's name.
        shape: of the work; its name is the system's in the rows.
        dtype: of the matrix products.
        tokens: of one call.
        products: its matrix products, which set the limit.
        build: puts the work in an implementation's own form.
        require_same: (a peer's evidence, ours, dtype); raises Disagreement where they differ.
    """

    bench: str
    shape: LayerShape | AnySystem
    dtype: DType
    tokens: int
    products: Mapping[Product, int]
    build: Callable[[Implementer], Built]
    require_same: Callable[[Any, Any, DType], None]

    def measure(
        self,
        ours: Implementer,
        peers: tuple[Sequence[Implementer], Mapping[str, str]],
        rounds: int,
        found: Environment,
        out: TextIO,
    ) -> Measured:
        """Times ours and the peers that do the same work, and prints it.

        Args:
            ours: our implementation.
            peers: those installed, and those missing; see `find_installed`.
            rounds: see `interleave`.
            found: what the process runs on.
            out: where to print.
        """
        us = self._enter(ours)
        our_evidence = cache(us.built.evidence)

        def take(peer: Implementer) -> _Entrant:
            entrant = self._enter(peer)
            self.require_same(entrant.built.evidence(), our_evidence(), self.dtype)
            return entrant

        installed, missing = peers
        others, left_out, all_agree = admit(installed, missing, take, self.shape.name, out)
        entrants = [us, *others]
        floor = Floor(self.products, self.dtype)
        timings = interleave({each.name: each.built.run for each in entrants} | floor.calls, rounds)
        rows = [
            report.make_row(
                found,
                timings[each.name],
                bench=self.bench,
                system=self.shape.name,
                implementation=each.name,
                dtype=self.dtype,
                tokens=self.tokens,
                first_s=each.first_s,
                settings=each.built.settings,
                shape=dataclasses.asdict(self.shape),
                peers_left_out=left_out,
            )
            for each in entrants
        ]
        rows = report.with_ratios([with_limit(row, floor, timings) for row in rows])
        report.print_table(rows, out)
        return rows, all_agree

    def _enter(self, implementation: Implementer) -> _Entrant:
        built = self.build(implementation)
        # Its first call, before anything else of this shape has run: compilation is part of it.
        return _Entrant(implementation.name, built, seconds(built.run))


def keep(measured: Iterable[Measured], json: Path | None, plot: Path | None) -> int:
    """Writes the rows as they come, and draws them; 1 if a peer did other work than ours."""
    agree: list[bool] = []

    def parts() -> Iterator[list[report.Row]]:
        for rows, agrees in measured:
            agree.append(agrees)
            yield rows

    rows = report.collect(parts(), json)
    if plot is not None:
        draw_times(rows, plot)
    return 0 if all(agree) else _DISAGREES

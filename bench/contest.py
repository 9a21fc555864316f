"""Ours and its peers at the same work, each in a process of its own, timed in turns.

Who does other work than ours takes no part. Where an implementation has several ways to run, each
has to agree with ours, and the fastest is timed and named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bench.command import Measured, OptionsWithPeers, measure
from bench.environment import cpu_cores
from bench.peers import ONLY, OURS, Candidate, Kind, candidates, load, module_of
from bench.products import Floor, Product, build_products
from bench.report import Row, make_row, print_table, with_ratios
from bench.shapes import AnySystem, LayerShape
from bench.timing import Timing, take_turns
from bench.workers import Built, Disagreement, Entered, Failed, NotRun, Server, Worker

_TRIES = 2

LIMIT = "limit"
"""The name of the process that times what the hardware allows."""


class Pool(ExitStack):
    """The processes of a bench, each started when it is first asked for; to be used with `with`."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: dict[tuple[str, str], Worker] = {}

    def worker(self, name: str, candidate: Candidate = ONLY) -> Worker:
        """The process of an implementation that is run in that way."""
        key = (name, candidate.name)
        if key not in self._workers:
            self._workers[key] = Worker(candidate.environment)
            self.callback(self._workers[key].close)
        return self._workers[key]

    def drop(self, name: str, candidate: Candidate) -> None:
        """Ends a process; a new one is started when it is asked for."""
        self._workers.pop((name, candidate.name)).close()


class LeftOut(dict[str, str]):
    """The peers that take no part in measuring a system, and why, which is told at once.

    Attributes:
        all_agree: whether none of them did other work than ours, or failed.
    """

    def __init__(self, system: str) -> None:
        super().__init__()
        self._system, self.all_agree = system, True

    def add(self, name: str, reason: Exception) -> None:
        """One that does other work, failed, or cannot run here; of ours the reason is raised."""
        if name.startswith(OURS):
            raise reason
        how = {Disagreement: "does other work", Failed: "failed"}.get(type(reason), "cannot run")
        self.all_agree &= isinstance(reason, NotRun)
        self[name] = f"{how}: {reason}"
        print(f"{self._system}: {name} is left out: {self[name]}", flush=True)


class Entrant(NamedTuple):
    """An implementation that takes part: its name in the rows, its process, what is built there."""

    name: str
    worker: Worker
    entered: Entered

    def row(self, timings: Timings, call: str, **fields: Any) -> Row:
        """A row of one of its calls; `fields` are those that `make_row` takes."""
        given = {"implementation": self.name, "settings": self.entered.settings} | fields
        return make_row(timings[self.name, call], first_s=self.entered.first_s[call], **given)


Timings = Mapping[tuple[str, str], Timing]
"""By the names of the entrant and of the call."""


def time_in_turns(entrants: Iterable[Entrant], rounds: int) -> Timings:
    """Times all calls of all entrants."""
    visits = {
        (entrant.name, call): partial(entrant.worker.ask, Server.visit, call)
        for entrant in entrants
        for call in entrant.entered.first_s
    }
    return take_turns(visits, rounds)


class Check(NamedTuple):
    """How a peer shows that it does the same work as ours.

    Attributes:
        evidence: what is computed from an implementation and `given`.
        given: the further arguments.
        require_same: (what a peer computed, what ours did); raises Disagreement.
    """

    evidence: Callable[..., Any]
    given: tuple[Any, ...]
    require_same: Callable[[Any, Any], None]


def with_peer(
    function: Callable[..., Any], module: str, options: Mapping[str, Any], *given: Any
) -> Any:
    """What a function makes of an implementation, which is loaded, and of further arguments."""
    return function(load(module, options), *given)


class Contest:
    """Who takes part in measuring one system, and who is left out; each peer is checked once."""

    def __init__(self, pool: Pool, kind: Kind, system: str, check: Check) -> None:
        self.pool, self.left_out = pool, LeftOut(system)
        self._kind, self._check = kind, check
        self._checked: set[tuple[str, str]] = set()
        self._ours: Any = None

    def enter(
        self, names: Sequence[str], build: Callable[..., Built], *given: Any
    ) -> list[Entrant]:
        """Those that run here and do the same work as ours, which is named first.

        `build`, a function of a module, makes an implementation's work, of it and of `given`.
        """
        entrants = []
        for name in names:
            if name in self.left_out:
                continue
            try:
                entrants.append(self._enter(name, build, given))
            except (Disagreement, NotRun, Failed) as reason:
                self.left_out.add(name, reason)
        return entrants

    def _enter(self, name: str, build: Callable[..., Built], given: tuple[Any, ...]) -> Entrant:
        """In each of the ways that it can run; the fastest stays."""
        entrants: dict[str, Entrant] = {}
        tried: dict[str, Exception] = {}
        for candidate in candidates(name, self._kind, cpu_cores()):
            worker, options = self.pool.worker(name, candidate), candidate.options
            try:
                # Before anything else of this shape has run: compilation is part of the first call.
                entered = worker.ask(
                    Server.enter, with_peer, build, module_of(name), options, *given
                )
                self._require_same(name, candidate, worker)
                entrants[candidate.name] = Entrant(name, worker, entered)
            except (NotRun, Failed) as reason:
                tried[candidate.name] = reason
                if isinstance(reason, Failed):
                    self.pool.drop(name, candidate)
        if not entrants:
            raise next(iter(tried.values()))
        return _fastest(entrants, tried)

    def _require_same(self, name: str, candidate: Candidate, worker: Worker) -> None:
        """Compares what a peer computes with what ours does, the first time that it enters."""
        check, key = self._check, (name, candidate.name)
        if key in self._checked or (name.startswith(OURS) and self._ours is not None):
            return
        found = worker.ask(
            Server.call, with_peer, check.evidence, module_of(name), candidate.options, *check.given
        )
        if name.startswith(OURS):
            self._ours = found
        else:
            check.require_same(found, self._ours)
        self._checked.add(key)


def _fastest(entrants: dict[str, Entrant], tried: Mapping[str, object]) -> Entrant:
    """The one whose first call is fastest at its best; it names all that were tried."""
    (name, best), *others = entrants.items()
    told = {name: f"cannot run: {reason}" for name, reason in tried.items()}
    if others:
        timings = take_turns(
            {
                name: partial(each.worker.ask, Server.visit, next(iter(each.entered.first_s)))
                for name, each in entrants.items()
            },
            rounds=_TRIES,
        )
        name = min(timings, key=lambda name: timings[name].p10_ms)
        best = entrants.pop(name)
        for each in entrants.values():
            each.worker.ask(Server.leave)
        told |= {name: f"{timing.p10_ms:.4g} ms" for name, timing in timings.items()}
    if not name:
        return best
    shown = "; ".join(f"{name} {each}" for name, each in told.items())
    settings = best.entered.settings | {"candidate": name} | ({"tried": shown} if shown else {})
    return best._replace(entered=best.entered._replace(settings=settings))


@dataclass(frozen=True)
class Work:
    """One call of each implementation that is timed beside its matrix products.

    Attributes:
        shape: of the work; its name is the system's in the rows.
        tokens: of a call.
        products: how often a call needs each.
        build: (implementation, shape, dtype) -> the call; a function of a module.
    """

    bench: str
    kind: Kind
    shape: AnySystem | LayerShape
    tokens: int
    products: Mapping[Product, int]
    build: Callable[..., Built]
    check: Check


def compete(pool: Pool, work: Work, options: OptionsWithPeers) -> Measured:
    """Times ours and the peers that do the same work, and prints it."""
    contest = Contest(pool, work.kind, work.shape.name, work.check)
    entrants = contest.enter((OURS, *options.peers), work.build, work.shape, options.dtype)
    worker = pool.worker(LIMIT)
    products = worker.ask(Server.enter, build_products, list(work.products), options.dtype)
    timings = time_in_turns([*entrants, Entrant(LIMIT, worker, products)], options.turns)
    floor = Floor(work.products, {c: t.median_ms for (n, c), t in timings.items() if n == LIMIT})
    fields = {
        "bench": work.bench,
        "system": work.shape.name,
        "dtype": options.dtype,
        "tokens": work.tokens,
        "shape": dataclasses.asdict(work.shape),
        "peers_left_out": contest.left_out,
    }
    rows = [
        floor.marked(each.row(timings, call, **fields))
        for each in entrants
        for call in each.entered.first_s
    ]
    rows = with_ratios(rows)
    print_table(rows)
    print(f"the products alone: {floor}", flush=True)
    return rows, contest.left_out.all_agree


def run(options: OptionsWithPeers, works: Iterable[Work]) -> int:
    """Times one work after the other, each in new processes; the exit code of the command."""

    def measured() -> Iterator[Measured]:
        for work in works:
            with Pool() as pool:
                yield compete(pool, work, options)

    return measure(options, measured())

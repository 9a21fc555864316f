"""Ours and its peers on the same work, each in its own process, timed in turns.

An implementation that does other work than ours is excluded. If it has several ways to run, each
must agree with ours, and the fastest is timed and named.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from bench.command import Measured, OptionsWithPeers, measure
from bench.limits import Product, build_products, floor
from bench.peers import OURS, Candidate, Implementation, candidates, load
from bench.report import Row, cpu_cores, make_row, print_table, with_ratios
from bench.shapes import PEERS_CELLS, AnySystem, LayerShape
from bench.timing import Timing, take_turns
from bench.workers import Built, Failed, NotRun, Reason, Server, Worker

_TRIES = 2
Timings = Mapping[tuple[str, str], Timing]  # By the names of entrant and call.
LIMIT = "limit"  # Name of the process that times the hardware's limits.


class Pool(ExitStack):
    """Context manager of a benchmark's processes by key, started when needed; see `Worker`."""

    def __init__(self, limit_s: float | None = None) -> None:
        super().__init__()
        self._limit_s = limit_s
        self._workers: dict[Hashable, Worker] = {}

    def worker(self, key: Hashable, environment: Mapping[str, str] = {}) -> Worker:
        if key not in self._workers:
            self._workers[key] = Worker(environment, self._limit_s)
            self.callback(self._workers[key].close)
        return self._workers[key]

    def drop(self, key: Hashable) -> None:
        self._workers.pop(key).close()


class LeftOut(dict[str, str]):
    """Peers excluded from measuring a system, with the reasons, which are printed at once."""

    all_agree = True  # whether none of them failed or did other work than ours.

    def __init__(self, system: str) -> None:
        super().__init__()
        self._system = system

    def add(self, name: str, reason: Reason) -> None:
        """Exclude a peer; if it is ours, raise the reason."""
        if name.startswith(OURS):
            raise reason
        self.all_agree &= isinstance(reason, NotRun)
        self[name] = f"{reason.how}: {reason}"
        print(f"{self._system}: {name} is left out: {self[name]}", flush=True)


class Entrant(NamedTuple):
    """A participant: its name in the rows, its process, and what was built there."""

    name: str
    worker: Worker
    first_s: Mapping[str, float]
    settings: Mapping[str, str]

    def visits(self) -> dict[tuple[str, str], Callable[[], list[float]]]:
        ask = self.worker.ask
        return {(self.name, call): partial(ask, Server.visit, call) for call in self.first_s}

    def row(
        self, bench: str, system: str, dtype: str, timings: Timings, call: str, **fields: Any
    ) -> Row:
        """Make a row of one of its calls; `fields` are those of `make_row`."""
        given = {"settings": self.settings, "first_s": self.first_s[call]} | fields
        return make_row(bench, system, self.name, dtype, timings[self.name, call], **given)


def time_in_turns(entrants: Iterable[Entrant], rounds: int) -> Timings:
    return take_turns({k: v for entrant in entrants for k, v in entrant.visits().items()}, rounds)


def with_peer(function: Callable[[Implementation], Any], name: str, options: Any) -> Any:
    return function(load(name, options))


@dataclass
class Contest:
    """Participants in measuring one system, and excluded peers; each peer is checked once."""

    pool: Pool
    bench: str
    system: str
    #: function of an implementation that shows which work it does.
    evidence: Callable[[Implementation], Any]
    require_same: Callable[[Any, Any], object]  # (a peer's evidence, ours); raises Disagreement.

    def __post_init__(self) -> None:
        self.left_out = LeftOut(self.system)
        self._show_ours: Callable[[], Any] | None = None
        self._agree: set[tuple[str, str]] = set()

    def enter(
        self, names: Sequence[str], build: Callable[[Implementation], Built]
    ) -> list[Entrant]:
        """Return the implementations that run here and do the same work as ours, which is first."""
        entrants = []
        for name in names:
            if name not in self.left_out:
                try:
                    entrants.append(self._enter(name, build))
                except Reason as reason:
                    self.left_out.add(name, reason)
        return entrants

    def _enter(self, name: str, build: Callable[[Implementation], Built]) -> Entrant:
        """Build each way of running an implementation, and keep the fastest."""
        entrants: dict[str, Entrant] = {}
        tried: dict[str, Reason] = {}
        for way in candidates(name, self.bench, cpu_cores()):
            worker = self.pool.worker((name, way.name), way.environment)
            try:
                # Before anything else of this shape runs, as the first call includes compilation.
                entered = worker.ask(Server.enter, with_peer, build, name, way.options)
                self._require_same(name, way, worker)
                entrants[way.name] = Entrant(name, worker, *entered)
            except (NotRun, Failed) as reason:
                tried[way.name] = reason
                if isinstance(reason, Failed):
                    self.pool.drop((name, way.name))
        if not entrants:
            raise next(iter(tried.values()))
        return _fastest(entrants, tried)

    def _require_same(self, name: str, way: Candidate, worker: Worker) -> None:
        """Compare a peer's evidence with ours, once; if there is no peer, none is computed."""
        show = partial(worker.ask, Server.call, with_peer, self.evidence, name, way.options)
        if name.startswith(OURS):
            self._show_ours = self._show_ours or cache(show)
        elif (name, way.name) not in self._agree:
            assert self._show_ours is not None, "ours enters first"
            self.require_same(show(), self._show_ours())
            self._agree.add((name, way.name))


def _fastest(entrants: dict[str, Entrant], tried: Mapping[str, Reason]) -> Entrant:
    """The entrant whose fastest call is the fastest, with a list of all that were tried."""
    told = {way: f"cannot run: {reason}" for way, reason in tried.items()}
    way = next(iter(entrants))
    if len(entrants) > 1:
        calls = {each: next(iter(entrant.visits().values())) for each, entrant in entrants.items()}
        timings = take_turns(calls, _TRIES)
        told |= {each: f"{timing.p10_ms:.4g} ms" for each, timing in timings.items()}
        way = min(timings, key=lambda each: timings[each].p10_ms)
    best = entrants.pop(way)
    for each in entrants.values():
        each.worker.ask(Server.leave)
    if not way:
        return best
    shown = "; ".join(f"{each} {what}" for each, what in told.items())
    settings = {"candidate": way} | ({"tried": shown} if shown else {})
    return best._replace(settings={**best.settings, **settings})


@dataclass(frozen=True)
class Work:
    """One call of each implementation, timed along with its matrix products; see `Contest`."""

    bench: str
    shape: AnySystem | LayerShape  # shape of the work; its name is the system's in the rows.
    tokens: int  # number of tokens per call.
    products: Mapping[Product, int]  # how often a call needs each product.
    build: Callable[[Implementation], Built]
    evidence: Callable[[Implementation], Any]
    require_same: Callable[[Any, Any], object]


def compete(pool: Pool, work: Work, options: OptionsWithPeers) -> Measured:
    contest = Contest(pool, work.bench, work.shape.name, work.evidence, work.require_same)
    peers = options.peers if work.shape.cell in PEERS_CELLS else ()
    entrants = contest.enter((OURS, *peers), work.build)
    worker = pool.worker(LIMIT)
    products = worker.ask(Server.enter, build_products, list(work.products), options.dtype)
    timings = time_in_turns([*entrants, Entrant(LIMIT, worker, *products)], options.turns)
    medians = {call: each.median_ms for (name, call), each in timings.items() if name == LIMIT}
    least_ms, least = floor(work.products, medians)
    names = (work.bench, work.shape.name, options.dtype, timings)
    fields: dict[str, Any] = {
        "tokens": work.tokens,
        "shape": dataclasses.asdict(work.shape),
        "peers_left_out": contest.left_out,
    }
    rows = with_ratios(
        [each.row(*names, call, **fields) for each in entrants for call in each.first_s]
    )
    ours = rows[0]
    settings = {**ours.settings, "limit": least}
    share = least_ms / ours.median_ms
    rows[0] = dataclasses.replace(ours, settings=settings, limit_fraction=share)
    print_table(rows)
    print(f"the products alone: {least}", flush=True)
    return rows, contest.left_out.all_agree


def run(options: OptionsWithPeers, works: Iterable[Work]) -> int:
    """Time all works, each in new processes; returns the command's exit code."""

    def measured() -> Iterator[Measured]:
        for work in works:
            with Pool() as pool:
                yield compete(pool, work, options)

    return measure(options, measured())

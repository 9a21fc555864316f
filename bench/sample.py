"""How fast a system writes: ours beside a plain loop in its peers.

One call reads a prompt (prefill) in every row and writes `places` tokens to each (decode); tokens a
second are those written. All start from the same weights. Before they are timed, each has to
continue the same prompts with the same tokens as ours, greedily, in float32.

Besides, for one text: how much of what memory allows a step reaches (see `bench.limits`), and how
fast a long prompt is read (prefill); and what filters cost over a large vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.agreement import continuations, require_same_continuations
from bench.command import Measured, OptionsWithPeers, measure
from bench.contest import LIMIT, Check, Contest, Entrant, Pool, Timings, time_in_turns
from bench.filters import KINDS, TOP_P, VOCABULARY_SIZE, build_filters
from bench.implementation import Implementation
from bench.limits import build_reading
from bench.ours import OurSampling
from bench.peers import OURS, SAMPLING_PEERS, require_peers
from bench.report import Row, print_table, with_ratios
from bench.shapes import DType, Job, System, system_named
from bench.workers import Built, Disagreement, Server
from lstm_jax.cli.arguments import parse
from lstm_jax.settings import Count, CountOrZero, PositiveOrZero

BENCH = "sample"
FILTER_BATCHES = (1, 16, 128)
LONG_PROMPT = 10_000
ROUNDED = f"{OURS} bfloat16 weights"
_QUICK_PLACES = 50
_QUICK_BATCH = 16
_QUICK_PROMPT = 1_000


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measures how fast each system writes, ours beside its peers.

    Attributes:
        systems: which systems.
        batch_sizes: how many texts are written side by side.
        dtype: of the weights; in float32, ours with bfloat16 weights is measured as well, unless
            quick.
        places: tokens that a call writes to each text.
        top_n: how many of the most likely tokens may be drawn; 0 for all.
        temperature: of the draws; 0 takes the most likely token.
        prompt_length: tokens that each text begins with.
        quick: a first look: few rounds and places, small batches, shorter prompts.
    """

    systems: tuple[str, ...] = ("anna", "shakespeare")
    batch_sizes: tuple[int, ...] = (1, 16, 128, 1024)
    places: Count = 200
    top_n: CountOrZero = 5
    temperature: PositiveOrZero = 1.0
    prompt_length: Count = 100
    rounds: Count = 5
    peers: tuple[str, ...] = SAMPLING_PEERS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_peers(self.peers, SAMPLING_PEERS)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {self.batch_sizes}; expected numbers of at least 1")

    def shortened(self) -> Options:
        """What is measured: if quick, less."""
        if not self.quick:
            return self
        small = tuple(size for size in self.batch_sizes if size <= _QUICK_BATCH)
        places = min(self.places, _QUICK_PLACES)
        return dataclasses.replace(
            self, batch_sizes=small or (min(self.batch_sizes),), places=places
        )

    def job(self, batch: int) -> Job:
        """One call at that batch size."""
        return Job(batch, self.prompt_length, self.places, self.temperature, self.top_n)

    @property
    def entrants(self) -> dict[str, DType]:
        """The dtype of the weights of ours and of each peer."""
        ours: dict[str, DType] = {OURS: "float32", ROUNDED: "bfloat16"}
        if self.dtype == "bfloat16":
            del ours[OURS]
        elif self.quick:
            del ours[ROUNDED]
        return ours | dict.fromkeys(self.peers, self.dtype)


def build(peer: Implementation, system: System, dtype: DType, job: Job) -> Built:
    """A call that writes; of ours, also what its parts are compared with.

    Those are the prompt alone, where one text is written, and the scan that training reads it
    with, where nothing but it is measured.
    """
    sampling = peer.sampling(system, dtype, system.initial_params(), job)
    calls: dict[str, Callable[[], object]] = {"write": sampling.write}
    if isinstance(sampling, OurSampling) and job.batch == 1:
        calls |= {"scan": sampling.scan} if job.places == 1 else {"prompt": sampling.write_one}
    return Built(calls, sampling.settings)


class _Bench:
    """One system, and who takes part in measuring it."""

    def __init__(self, pool: Pool, system: System, options: Options) -> None:
        self._pool, self._system, self._options = pool, system, options
        check = Check(continuations, (system,), require_same_continuations)
        self.contest = Contest(pool, "sampling", system.name, check)

    def measure_writing(self, batch: int) -> Measured:
        """Times all at a batch size; one text beside the prompt alone and what memory allows."""
        job, name = self._options.job(batch), self._system.name
        entrants, reading = self._enter(job), self._reading(job) if batch == 1 else []
        timings = time_in_turns([*entrants, *reading], self._options.turns)
        row = partial(self._row, timings, job)
        rows = [row(each, "write", name, job.places) for each in entrants]
        prompts = [
            row(each, "prompt", f"{name} prompt {job.prompt_length}", job.prompt_length, places=1)
            for each in entrants
            if "prompt" in each.entered.first_s
        ]
        weights = [
            dataclasses.replace(
                row(each, call, f"{name} weights", job.places),
                implementation=call,
                dtype=call.rpartition(" ")[2],
            )
            for each in reading
            for call in each.entered.first_s
        ]
        rows = [with_limit(each, prompts, weights) for each in rows]
        return self._told(f"{name}, batch {batch}, {job.places} places", rows, prompts + weights)

    def measure_prompt(self, length: int) -> Measured:
        """Times how fast one long prompt is absorbed: calls that write a single token after it."""
        job = dataclasses.replace(self._options.job(1), prompt_length=length, places=1)
        entrants, name = self._enter(job), f"{self._system.name} prompt {length}"
        timings = time_in_turns(entrants, self._options.turns)
        rows = [
            dataclasses.replace(
                self._row(timings, job, each, call, name, length),
                implementation=each.name if call == "write" else f"{each.name}, training scan",
            )
            for call in ("write", "scan")
            for each in entrants
            if call in each.entered.first_s
        ]
        return self._told(name, rows)

    def _enter(self, job: Job) -> list[Entrant]:
        return [
            entrant
            for name, dtype in self._options.entrants.items()
            for entrant in self.contest.enter([name], build, self._system, dtype, job)
        ]

    def _reading(self, job: Job) -> list[Entrant]:
        ours = [each for name, each in self._options.entrants.items() if name.startswith(OURS)]
        worker = self._pool.worker(LIMIT)
        entered = worker.ask(Server.enter, build_reading, self._system, ours, job.places)
        return [Entrant(LIMIT, worker, entered)]

    def _row(
        self,
        timings: Timings,
        job: Job,
        entrant: Entrant,
        call: str,
        system: str,
        steps: int,
        **shape: Any,
    ) -> Row:
        names = ("name", "vocabulary_size", "cell", "layers", "hidden_size", "embedding_size")
        sizes: dict[str, Any] = {name: getattr(self._system, name) for name in names}
        return entrant.row(
            timings,
            call,
            bench=BENCH,
            system=system,
            dtype=self._options.entrants.get(entrant.name, ""),
            tokens=steps * job.batch,
            steps_per_second=1e3 * steps / timings[entrant.name, call].median_ms,
            shape=sizes | dataclasses.asdict(job) | shape,
            peers_left_out=self.contest.left_out,
        )

    def _told(self, title: str, rows: Sequence[Row], others: Sequence[Row] = ()) -> Measured:
        """The rows, which are compared with each other, and others; printed."""
        found = [*with_ratios(rows), *others]
        print(f"\n{title}")
        print_table(found)
        return found, self.contest.left_out.all_agree


def with_limit(row: Row, prompts: Sequence[Row], weights: Sequence[Row]) -> Row:
    """A row of ours with the share of the limit that its steps reach.

    That is the time that reading the weights takes for each step over what a step takes; from a
    call's time that of the prompt is taken off, with which one place is written too.
    """
    prompt = [each.median_ms for each in prompts if each.implementation == row.implementation]
    read = [each.median_ms for each in weights if each.dtype == row.dtype]
    places = int(str(row.shape["places"]))
    steps_ms = row.median_ms - sum(prompt)
    if not (prompt and read) or places < 2 or steps_ms <= 0:
        return row
    share = (min(read) / places) / (steps_ms / (places - 1))
    return dataclasses.replace(row, limit_fraction=share)


def measure_filters(pool: Pool, kind: str, batch: int, options: Options) -> Measured:
    """Times ours beside other ways to filter; no rows where they keep other tokens than ours."""
    top_n, worker = max(1, options.top_n), pool.worker("filters")
    try:
        entered = worker.ask(Server.enter, build_filters, kind, batch, top_n, VOCABULARY_SIZE)
    except Disagreement as reason:
        print(f"filters are left out: {reason}", flush=True)
        return [], False
    entrant = Entrant("filters", worker, entered)
    timings = time_in_turns([entrant], options.turns)
    number = {"top_n": top_n} if kind == "top-n" else {"top_p": TOP_P}
    rows = [
        entrant.row(
            timings,
            name,
            bench=BENCH,
            system=f"filter {kind} {VOCABULARY_SIZE}",
            implementation=name,
            dtype="float32",
            tokens=batch,
            shape={"batch": batch, "vocabulary_size": VOCABULARY_SIZE, **number},
        )
        for name in entered.first_s
    ]
    print(f"\n{rows[0].system}, batch {batch}")
    rows = with_ratios(rows)
    print_table(rows)
    return rows, True


def measure_all(pool: Pool, systems: Sequence[System], options: Options) -> Iterator[Measured]:
    """Measures one system after the other, then the filters."""
    for system in systems:
        bench = _Bench(pool, system, options)
        yield from map(bench.measure_writing, options.batch_sizes)
        yield bench.measure_prompt(_QUICK_PROMPT if options.quick else LONG_PROMPT)
    for batch in FILTER_BATCHES[:1] if options.quick else FILTER_BATCHES:
        for kind in KINDS:
            yield measure_filters(pool, kind, batch, options)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer wrote other tokens than ours."""
    options = parse(Options, None, arguments, "bench sample").shortened()
    systems: Any = [system_named(name, writes=True) for name in options.systems]
    with Pool() as pool:
        return measure(options, measure_all(pool, systems, options))

"""Speed of text generation: ours and a plain loop in its peers.

One call reads a prompt in every row (prefill) and generates `places` tokens in each (decode); the
rate counts generated tokens. Before timing, each must continue the same prompts with the same
tokens as ours, greedily, in float32. For a single text it also measures the share of the memory
limit that a step reaches (see `bench.limits`), and a long prompt; and filters of many tokens.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from bench.command import Measured, OptionsWithPeers, measure
from bench.contest import LIMIT, Contest, Entrant, Pool, Timings, time_in_turns
from bench.filters import KINDS, TOP_P, VOCABULARY_SIZE, build_filters
from bench.limits import build_reading
from bench.peers import OURS, SAMPLING_PEERS, Arrays, Implementation
from bench.report import Row, print_table, with_ratios
from bench.shapes import Job, StoredDType, System, system_named
from bench.workers import Built, Disagreement, Server
from lstm_jax.models import LanguageModelParams
from lstm_jax.settings import Count, CountOrZero, PositiveOrZero

FILTER_BATCHES = (1, 16, 128)
LONG_PROMPT = 10_000
ROUNDED = f"{OURS} bfloat16 weights"
_QUICK_PLACES = 50
_QUICK_BATCH = 16
_QUICK_PROMPT = 1_000

GREEDY = Job(batch=3, prompt_length=20, places=50, temperature=0.0)
"""Number of continuations to compare, in float32."""

_INPUT_SCALE, _RECURRENT_SCALE = 16.0, 2.0


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measure how fast each system generates, ours and its peers.

    Attributes:
        dtype: dtype of the weights; with float32, ours is also measured with bfloat16 weights,
            unless `quick`.
        quick: a first look, with few rounds and places, small batches, and shorter prompts.
    """

    systems: tuple[str, ...] = ("anna", "shakespeare")  # systems to measure.
    batch_sizes: tuple[int, ...] = (1, 16, 128, 1024)  # numbers of texts per batch.
    places: Count = 200  # tokens to generate per text and call.
    top_n: CountOrZero = 5  # sample from the n most likely tokens only; 0 for all.
    temperature: PositiveOrZero = 1.0  # temperature of the draws; 0 takes the most likely token.
    prompt_length: Count = 100  # tokens per prompt.
    rounds: Count = 5  # number of turns per implementation, each a quarter of a second or one call.
    #: peers to measure; one that is not installed is reported and left out.
    peers: tuple[str, ...] = SAMPLING_PEERS
    known: ClassVar[Collection[str]] = SAMPLING_PEERS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {self.batch_sizes}; expected numbers of at least 1")

    def shortened(self) -> Self:
        if not self.quick:
            return self
        small = tuple(size for size in self.batch_sizes if size <= _QUICK_BATCH)
        small, places = small or (min(self.batch_sizes),), min(self.places, _QUICK_PLACES)
        return dataclasses.replace(self, batch_sizes=small, places=places)

    def job(self, batch: int) -> Job:
        return Job(batch, self.prompt_length, self.places, self.temperature, self.top_n)

    @property
    def entrants(self) -> dict[str, StoredDType]:
        """Dtype of the weights of ours and of each peer."""
        ours: dict[str, StoredDType] = {OURS: "float32", ROUNDED: "bfloat16"}
        if self.dtype == "bfloat16":
            del ours[OURS]
        elif self.quick:
            del ours[ROUNDED]
        return ours | dict.fromkeys(self.peers, self.dtype)


def continuations(peer: Implementation, system: System) -> Arrays:
    """The most likely tokens `[places, B]`, taken greedily, then drawn with `top_n` 1."""
    params = _scaled(system.initial_params())
    jobs = {"greedy": GREEDY, "top-n 1": dataclasses.replace(GREEDY, temperature=1.0, top_n=1)}
    return {
        name: peer.sampling(system, "float32", params, job).calls["write"]()
        for name, job in jobs.items()
    }


def _scaled(params: LanguageModelParams) -> LanguageModelParams:
    """Larger weights, on which the text depends: otherwise it soon repeats the likeliest token."""
    layers = tuple(
        layer._replace(w_x=layer.w_x * _INPUT_SCALE, w_h=layer.w_h * _RECURRENT_SCALE)
        for layer in params.layers
    )
    return params._replace(layers=layers, output=params.output._replace(b=params.output.b * 0))


def require_same_continuations(found: Arrays, ours: Arrays) -> None:
    """Raise Disagreement at the first difference between `continuations`."""
    for how, those in ours.items():
        these = found[how]
        if these.shape != those.shape:
            raise Disagreement(f"{how} tokens are {these.shape}, ours {those.shape}")
        if (these != those).any():
            place, row = (int(index) for index in np.argwhere(these != those)[0])
            tokens = f"is {these[place, row]}, ours {those[place, row]}"
            raise Disagreement(f"{how} token {place} of text {row} {tokens}")


def build(peer: Implementation, system: System, dtype: StoredDType, job: Job) -> Built:
    return peer.sampling(system, dtype, system.initial_params(), job)


@dataclass
class _Bench:
    """One system and the participants in measuring it."""

    pool: Pool
    system: System
    options: Options

    def __post_init__(self) -> None:
        name, evidence = self.system.name, partial(continuations, system=self.system)
        self._contest = Contest(self.pool, "sample", name, evidence, require_same_continuations)

    def measure_writing(self, batch: int) -> Measured:
        """Time all at a batch size; for a single text, also the prompt and the memory limit."""
        job, name = self.options.job(batch), self.system.name
        entrants, reading = self._enter(job), self._reading(job) if batch == 1 else []
        timings = time_in_turns([*entrants, *reading], self.options.turns)
        row = partial(self._row, timings, job)
        prompts = [row(each, "prompt", True) for each in entrants if "prompt" in each.first_s]
        weights = []
        for each in reading:
            for call in each.first_s:
                about: Any = {"system": f"{name} weights", "dtype": call.rpartition(" ")[2]}
                weights.append(dataclasses.replace(row(each, call), implementation=call, **about))
        rows = [with_limit(row(each, "write"), prompts, weights) for each in entrants]
        return self._rated(f"{name}, batch {batch}, {job.places} places", rows, prompts + weights)

    def measure_prompt(self, length: int) -> Measured:
        """Time the prefill of one long prompt, by calls that generate a single token after it."""
        job = dataclasses.replace(self.options.job(1), prompt_length=length, places=1)
        entrants = self._enter(job)
        timings = time_in_turns(entrants, self.options.turns)
        row = partial(self._row, timings, job, reads=True)
        rows = [row(each, "write") for each in entrants]
        for each in entrants:
            if "scan" in each.first_s:
                name = f"{each.name}, training scan"
                rows.append(dataclasses.replace(row(each, "scan"), implementation=name))
        return self._rated(rows[0].system, rows)

    def _enter(self, job: Job) -> list[Entrant]:
        given: Any = {"system": self.system, "job": job}
        return [
            entrant
            for name, dtype in self.options.entrants.items()
            for entrant in self._contest.enter([name], partial(build, dtype=dtype, **given))
        ]

    def _reading(self, job: Job) -> list[Entrant]:
        ours = [each for name, each in self.options.entrants.items() if name.startswith(OURS)]
        worker = self.pool.worker(LIMIT)
        entered = worker.ask(Server.enter, build_reading, self.system, ours, job.places)
        return [Entrant(LIMIT, worker, *entered)]

    def _row(
        self, timings: Timings, job: Job, entrant: Entrant, call: str, reads: bool = False
    ) -> Row:
        system, dtype = self.system.name, self.options.entrants.get(entrant.name, "")
        names = ("name", "vocabulary_size", "cell", "layers", "hidden_size", "embedding_size")
        shape = {name: getattr(self.system, name) for name in names} | dataclasses.asdict(job)
        steps = job.places
        if reads:
            system, steps = f"{system} prompt {job.prompt_length}", job.prompt_length
            shape["places"] = 1
        return entrant.row(
            *("sample", system, dtype, timings, call),
            tokens=steps * job.batch,
            steps_per_second=1e3 * steps / timings[entrant.name, call].median_ms,
            shape=shape,
            peers_left_out=self._contest.left_out,
        )

    def _rated(self, title: str, rows: Sequence[Row], others: Sequence[Row] = ()) -> Measured:
        found = [*with_ratios(rows), *others]
        print(f"\n{title}")
        print_table(found)
        return found, self._contest.left_out.all_agree


def with_limit(row: Row, prompts: Sequence[Row], weights: Sequence[Row]) -> Row:
    """Add to a row of ours the share of the memory limit that its steps reach.

    This is the time to read the weights once over the time of a step, for which the time of the
    prompt, including one place, is subtracted from that of a call.
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
    """Time ours and other ways to filter; no rows if they keep other tokens than ours."""
    top_n, worker = max(1, options.top_n), pool.worker("filters")
    try:
        entered = worker.ask(Server.enter, build_filters, kind, batch, top_n, VOCABULARY_SIZE)
    except Disagreement as reason:
        print(f"filters are left out: {reason}", flush=True)
        return [], False
    entrant, system = Entrant("filters", worker, *entered), f"filter {kind} {VOCABULARY_SIZE}"
    names = ("sample", system, "float32", time_in_turns([entrant], options.turns))
    number = {"top_n": top_n} if kind == "top-n" else {"top_p": TOP_P}
    shape = {"batch": batch, "vocabulary_size": VOCABULARY_SIZE, **number}
    found = [(call, entrant.row(*names, call, tokens=batch, shape=shape)) for call in entered[0]]
    rows = with_ratios([dataclasses.replace(row, implementation=call) for call, row in found])
    print(f"\n{system}, batch {batch}")
    print_table(rows)
    return rows, True


def measure_all(pool: Pool, systems: Sequence[System], options: Options) -> Iterator[Measured]:
    for system in systems:
        bench = _Bench(pool, system, options)
        yield from map(bench.measure_writing, options.batch_sizes)
        yield bench.measure_prompt(_QUICK_PROMPT if options.quick else LONG_PROMPT)
    for batch in FILTER_BATCHES[:1] if options.quick else FILTER_BATCHES:
        for kind in KINDS:
            yield measure_filters(pool, kind, batch, options)


def main(options: Options) -> int:
    options = options.shortened()
    systems: Any = [system_named(name, writes=True) for name in options.systems]
    with Pool() as pool:
        return measure(options, measure_all(pool, systems, options))

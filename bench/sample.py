"""How fast a system writes: ours beside a plain loop in its peers.

    python -m bench.sample [--systems anna shakespeare] [--batch-sizes 1 16 128 1024] [--rounds 5]
                           [--places 200] [--top-n 5] [--temperature 1.0] [--prompt-length 100]
                           [--dtype bfloat16] [--quick] [--peers pytorch flax-nnx]
                           [--json FILE] [--plot FILE]

One call absorbs a prompt in every row and writes `places` tokens to each; tokens a second are those
written. All start from the same weights, and are timed in turns in one run. Before that each has
to continue the same prompts with the same tokens as ours, greedily, in float32.

Besides, for one text: how much of what memory allows a step reaches (see `bench.limits`), and how
fast a long prompt is absorbed; and what filters cost over a large vocabulary. See `bench` for more.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from bench import report
from bench.agreement import Disagreement, continuations, require_same_continuations
from bench.contest import admit
from bench.environment import Environment, environment
from bench.filters import measure_filters
from bench.implementation import Sampling, SamplingImplementation
from bench.limits import bytes_a_step, readers
from bench.measure import Timing, interleave, require_at_least_one, seconds
from bench.our_sampling import OurSampler, OurSampling, OurScan, stored
from bench.peers import SAMPLING_PEERS, find_installed, sampling_peer_named
from bench.plot import draw_throughput, require_matplotlib
from bench.shapes import DType, Job, System, language_system_named
from lstm_jax.cli.arguments import parse, run_command

BENCH = "sample"
FILTER_BATCHES = (1, 16, 128)
LONG_PROMPT = 10_000
_QUICK_ROUNDS = 2
_QUICK_PLACES = 50
_QUICK_BATCH = 16
_QUICK_PROMPT = 1_000
_DISAGREES = 1


@dataclass(frozen=True)
class Options:
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
        rounds: turns of about a quarter of a second, or one call, that each implementation has.
        quick: a first look: few rounds and places, small batches, shorter prompts.
        json: where to write the rows.
        plot: where to draw tokens a second against the batch size.
        peers: which peers; one that is not installed is named and left out.
    """

    systems: tuple[str, ...] = ("anna", "shakespeare")
    batch_sizes: tuple[int, ...] = (1, 16, 128, 1024)
    dtype: DType = "float32"
    places: int = 200
    top_n: int = 5
    temperature: float = 1.0
    prompt_length: int = 100
    rounds: int = 5
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    peers: tuple[str, ...] = tuple(SAMPLING_PEERS)

    def __post_init__(self) -> None:
        require_at_least_one(
            places=self.places, prompt_length=self.prompt_length, rounds=self.rounds
        )
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {self.batch_sizes}; expected numbers of at least 1")
        if self.top_n < 0:
            raise ValueError(f"top_n is {self.top_n}; it must be 0 (all tokens) or above")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        require_matplotlib(self.plot)

    def shortened(self) -> Options:
        """What is measured: if quick, less."""
        if not self.quick:
            return self
        small = tuple(size for size in self.batch_sizes if size <= _QUICK_BATCH)
        return dataclasses.replace(
            self,
            batch_sizes=small or (min(self.batch_sizes),),
            places=min(self.places, _QUICK_PLACES),
            rounds=min(self.rounds, _QUICK_ROUNDS),
        )

    def job(self, batch: int) -> Job:
        """One call at that batch size."""
        return Job(batch, self.prompt_length, self.places, self.temperature, self.top_n)


class _Entrant(NamedTuple):
    implementation: SamplingImplementation
    dtype: DType


def _ours(options: Options) -> list[_Entrant]:
    exact = _Entrant(OurSampler(), "float32")
    rounded = _Entrant(OurSampler(f"{report.OURS} bfloat16 weights"), "bfloat16")
    if options.dtype == "bfloat16":
        return [rounded]
    return [exact] if options.quick else [exact, rounded]


class _Call(NamedTuple):
    """What is timed: under which names its row appears, and what a call of it does."""

    system: str
    implementation: str
    dtype: str
    run: Callable[[], object]
    settings: Mapping[str, str]
    tokens: int
    steps: int


class _Timed(NamedTuple):
    call: _Call
    timing: Timing
    first_s: float


class _Contest:
    """One system, and who takes part in measuring it."""

    def __init__(self, system: System, options: Options, found: Environment) -> None:
        self._system, self._options, self._environment = system, options, found
        self._params = system.initial_params()
        self._ours = _ours(options)
        self._peers: list[_Entrant] = []
        self._left_out: Mapping[str, str] = {}

    def admit(self, out: TextIO) -> bool:
        """Takes in the peers that write the same tokens as ours; whether none writes others."""
        installed, missing = find_installed(self._options.peers, sampling_peer_named)
        ours = continuations(OurSampler(), self._system, self._params)

        def take(peer: SamplingImplementation) -> _Entrant:
            found = continuations(peer, self._system, self._params)
            require_same_continuations(found, ours)
            return _Entrant(peer, self._options.dtype)

        name = self._system.name
        self._peers, self._left_out, agrees = admit(installed, missing, take, name, out)
        return agrees

    def measure(self, batch: int) -> list[report.Row]:
        """Times all at a batch size."""
        job = self._options.job(batch)
        timed = self._time([self._call(self._system.name, job, each) for each in self._entrants])
        return report.with_ratios([self._row(job, each) for each in timed])

    def measure_one_text(self) -> tuple[list[report.Row], list[report.Row]]:
        """Times all at batch size 1, beside what is part of it and what memory allows.

        Returns:
            The rows as of any batch size, with the share of the limit; and those of absorbing the
            prompt and of reading the weights, which the share was told from.
        """
        job = self._options.job(1)
        whole = [self._call(self._system.name, job, each) for each in self._entrants]
        prompt = self._prompt_job(job.prompt_length)
        alone = [self._prompt_alone(job, each) for each in self._ours]
        reading = [call for each in self._ours for call in self._reading_calls(each)]
        timed = self._time([*whole, *alone, *reading])
        beside = timed[len(whole) :]
        rows = [
            dataclasses.replace(self._row(job, each), limit_fraction=_limit_fraction(each, beside))
            for each in timed[: len(whole)]
        ]
        prompt_rows = [self._row(prompt, each) for each in beside[: len(alone)]]
        reading_rows = [self._row(job, each) for each in beside[len(alone) :]]
        return report.with_ratios(rows), prompt_rows + reading_rows

    def measure_prompt(self, length: int) -> list[report.Row]:
        """Times how fast one long prompt is absorbed: calls that write a single token after it."""
        job = self._prompt_job(length)
        calls = [self._prompt_call(job, each) for each in self._entrants]
        timed = self._time([*calls, *(self._scan_call(job, each) for each in self._ours)])
        return report.with_ratios([self._row(job, each) for each in timed])

    @property
    def _entrants(self) -> list[_Entrant]:
        return self._ours + self._peers

    def _call(self, name: str, job: Job, entrant: _Entrant) -> _Call:
        sampling: Sampling = entrant.implementation.build(
            self._system, entrant.dtype, self._params, job
        )
        return _Call(
            name,
            entrant.implementation.name,
            entrant.dtype,
            sampling.write,
            sampling.settings,
            tokens=job.places * job.batch,
            steps=job.places,
        )

    def _prompt_job(self, length: int) -> Job:
        return dataclasses.replace(self._options.job(1), prompt_length=length, places=1)

    def _prompt_name(self, job: Job) -> str:
        return f"{self._system.name} prompt {job.prompt_length}"

    def _prompt_call(self, job: Job, entrant: _Entrant) -> _Call:
        call = self._call(self._prompt_name(job), job, entrant)
        return call._replace(tokens=job.prompt_length, steps=job.prompt_length)

    def _prompt_alone(self, job: Job, entrant: _Entrant) -> _Call:
        """Of ours alone: the part of a call that comes before its second step."""
        sampling = OurSampling(self._system, entrant.dtype, self._params, job)
        return _Call(
            self._prompt_name(job),
            entrant.implementation.name,
            entrant.dtype,
            sampling.write_one,
            {"call": "stream"},
            tokens=job.prompt_length,
            steps=job.prompt_length,
        )

    def _scan_call(self, job: Job, entrant: _Entrant) -> _Call:
        scan = OurScan(self._system, entrant.dtype, self._params, job.prompts(self._system))
        return _Call(
            self._prompt_name(job),
            f"{entrant.implementation.name}, training scan",
            entrant.dtype,
            scan.run,
            scan.settings,
            tokens=job.prompt_length,
            steps=job.prompt_length,
        )

    def _reading_calls(self, entrant: _Entrant) -> list[_Call]:
        """Reads as many bytes as this one's steps must, as many times as a call has steps."""
        _, params = stored(self._system, entrant.dtype, self._params)
        size, passes = bytes_a_step(params), self._options.places
        return [
            _Call(
                f"{self._system.name} weights",
                f"{how}, {entrant.dtype}",
                entrant.dtype,
                run,
                {"bytes": str(size)},
                tokens=passes,
                steps=passes,
            )
            for how, run in readers(size, passes).items()
        ]

    def _time(self, calls: Sequence[_Call]) -> list[_Timed]:
        by_name = {f"{call.system}: {call.implementation}": call for call in calls}
        # Its first call, before anything else of this shape has run: compilation is part of it.
        first_s = {name: seconds(call.run) for name, call in by_name.items()}
        timings = interleave(
            {name: call.run for name, call in by_name.items()}, self._options.rounds
        )
        return [_Timed(by_name[name], timings[name], first_s[name]) for name in by_name]

    def _row(self, job: Job, timed: _Timed) -> report.Row:
        call, timing = timed.call, timed.timing
        row = report.make_row(
            self._environment,
            timing,
            bench=BENCH,
            system=call.system,
            implementation=call.implementation,
            dtype=call.dtype,
            tokens=call.tokens,
            first_s=timed.first_s,
            settings=call.settings,
            shape=_shape(self._system) | dataclasses.asdict(job),
            peers_left_out=self._left_out,
        )
        return dataclasses.replace(row, steps_per_second=1e3 * call.steps / timing.median_ms)


def _shape(system: System) -> dict[str, Any]:
    """What of a system matters to sampling."""
    names = ("name", "vocabulary_size", "cell", "layers", "hidden_size", "embedding_size")
    return {name: getattr(system, name) for name in names}


def _limit_fraction(whole: _Timed, beside: Sequence[_Timed]) -> float | None:
    """The share of the limit that the steps reach, the prompt's time taken off; for ours alone."""
    call = whole.call
    prompts = [each for each in beside if each.call.implementation == call.implementation]
    if not prompts or call.steps < 2:
        return None
    # The call with the prompt alone has one step too.
    steps_ms = whole.timing.median_ms - prompts[0].timing.median_ms
    read_ms = min(
        each.timing.median_ms
        for each in beside
        if "bytes" in each.call.settings and each.call.dtype == call.dtype
    )
    if steps_ms <= 0:
        return None
    return (read_ms / call.steps) / (steps_ms / (call.steps - 1))


class Measured(NamedTuple):
    """What one system gave.

    Attributes:
        sampling: rows of sampling, of each batch size.
        others: rows of what was measured besides.
        agrees: whether every peer that is installed wrote the same tokens as ours.
    """

    sampling: list[report.Row]
    others: list[report.Row]
    agrees: bool


def measure_system(system: System, options: Options, found: Environment, out: TextIO) -> Measured:
    """Measures one system, and prints it.

    Args:
        system: its shape.
        options: all but `systems`, `json` and `plot`.
        found: what the process runs on.
        out: where to print.
    """
    options = options.shortened()
    contest = _Contest(system, options, found)
    agrees = contest.admit(out)
    sampling: list[report.Row] = []
    others: list[report.Row] = []
    for batch in options.batch_sizes:
        rows, besides = contest.measure_one_text() if batch == 1 else (contest.measure(batch), [])
        _print_part(f"{system.name}, batch {batch}, {options.places} places", rows + besides, out)
        sampling, others = sampling + rows, others + besides
    rows = contest.measure_prompt(_QUICK_PROMPT if options.quick else LONG_PROMPT)
    _print_part(rows[0].system, rows, out)
    return Measured(sampling, others + rows, agrees)


def measure_all_filters(
    options: Options, found: Environment, out: TextIO
) -> tuple[list[report.Row], bool]:
    """Measures what filters cost; the rows, and whether all keep the same tokens."""
    options = options.shortened()
    rows: list[report.Row] = []
    for batch in FILTER_BATCHES[:1] if options.quick else FILTER_BATCHES:
        try:
            measured = measure_filters(
                BENCH, found, batch=batch, top_n=max(1, options.top_n), rounds=options.rounds
            )
        except Disagreement as reason:
            print(f"filters are left out: {reason}", file=out, flush=True)
            return rows, False
        for each in measured:
            _print_part(f"{each[0].system}, batch {batch}", each, out)
            rows += each
    return rows, True


def _print_part(title: str, rows: Sequence[report.Row], out: TextIO) -> None:
    print(f"\n{title}", file=out)
    report.print_table(rows, out)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer wrote other tokens than ours."""
    options = parse(Options, None, arguments, "bench.sample")
    systems = [language_system_named(name) for name in options.systems]
    found = environment()
    report.print_environment(found, sys.stdout)
    sampling: list[report.Row] = []
    others: list[report.Row] = []
    all_agree = True
    for system in systems:
        measured = measure_system(system, options, found, sys.stdout)
        sampling, others = sampling + measured.sampling, others + measured.others
        all_agree &= measured.agrees
        _write(options, sampling, others)
    rows, agree = measure_all_filters(options, found, sys.stdout)
    _write(options, sampling, others + rows)
    return 0 if all_agree and agree else _DISAGREES


def _write(options: Options, sampling: Sequence[report.Row], others: Sequence[report.Row]) -> None:
    if options.json is not None:
        report.write_json([*sampling, *others], options.json)
    if options.plot is not None:
        draw_throughput(sampling, options.plot)


if __name__ == "__main__":
    sys.exit(run_command("bench.sample", main))

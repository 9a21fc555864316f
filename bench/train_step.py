"""One whole training step of a system (forward, backward, clip, Adam): ours beside its peers.

    python -m bench.train_step [--systems anna lyrics] [--dtype bfloat16] [--rounds 20] [--quick]
                               [--peers pytorch flax-nnx keras equinox]
                               [--json FILE] [--plot FILE]

All of them start from the same weights, train on the same random tokens in the same dtype, and are
timed in turns in one run. Before that, with dropout off, each has to show that it does the same
work: as many parameters, the same first loss, the same drop of the loss. `limit_fraction` is the
time of a step's matrix products alone (see `bench.products`) over ours. See `bench` for more.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from bench import report
from bench.agreement import Disagreement, Evidence, evidence, require_agreement
from bench.environment import Environment, environment
from bench.implementation import Implementation, Training
from bench.measure import Timing, interleave, seconds
from bench.ours import Ours
from bench.peers import PEERS, find_installed, peer_named
from bench.plot import draw_times, require_matplotlib
from bench.products import Floor, products_of_system, with_limit
from bench.shapes import AnyParams, AnySystem, DType, systems_named
from lstm_jax.cli.arguments import parse, run_command

BENCH = "train_step"
_QUICK_ROUNDS = 2
_DISAGREES = 1


@dataclass(frozen=True)
class Options:
    """Measures one training step of each system, ours beside its peers.

    Attributes:
        systems: which systems; none named means all, or, if quick, the first.
        dtype: of the matrix products.
        rounds: turns of about a quarter of a second, or one call, that each implementation has.
        quick: a first look: few rounds.
        json: where to write the rows.
        plot: where to draw the times.
        peers: which peers; one that is not installed is named and left out.
    """

    systems: tuple[str, ...] = ()
    dtype: DType = "float32"
    rounds: int = 20
    quick: bool = False
    json: Path | None = None
    plot: Path | None = None
    peers: tuple[str, ...] = tuple(PEERS)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        require_matplotlib(self.plot)


class _Contest:
    """One system, and who takes part in measuring it."""

    def __init__(
        self, system: AnySystem, dtype: DType, found: Environment, left_out: Mapping[str, str]
    ) -> None:
        self.left_out = dict(left_out)
        self.disagrees = False
        self._system, self._dtype, self._environment = system, dtype, found
        self._params: AnyParams = system.initial_params()
        self._trainings: dict[str, Training] = {}
        self._first_s: dict[str, float] = {}

    def admit_ours(self, implementation: Implementation) -> None:
        """Takes ours in."""
        self._take(implementation)

    def admit_peer(self, peer: Implementation) -> None:
        """Takes a peer in, or leaves it out if it does other work than ours."""
        try:
            self._take(peer)
            require_agreement(self._evidence(peer), self._ours, self._dtype)
        except Disagreement as reason:
            self.disagrees = True
            self._leave_out(peer.name, f"does other work: {reason}")
        except ValueError as reason:
            self._leave_out(peer.name, f"cannot run here: {reason}")

    def measure(self, rounds: int) -> list[report.Row]:
        """Times all that were taken in."""
        steps = {name: training.step for name, training in self._trainings.items()}
        floor = Floor(products_of_system(self._system), self._dtype)
        timings = interleave(steps | floor.calls, rounds)
        rows = [self._row(name, timings[name]) for name in steps]
        return report.with_ratios([with_limit(row, floor, timings) for row in rows])

    def _take(self, implementation: Implementation) -> None:
        # Its first step, before anything else of this shape has run: compilation is part of it.
        training = self._build(implementation, self._system)
        self._first_s[implementation.name] = seconds(training.step)
        self._trainings[implementation.name] = training

    def _leave_out(self, name: str, reason: str) -> None:
        self._trainings.pop(name, None)
        self.left_out[name] = reason

    @cached_property
    def _ours(self) -> Evidence:
        return self._evidence(Ours())

    def _evidence(self, implementation: Implementation) -> Evidence:
        return evidence(self._build(implementation, self._system.without_dropout()))

    def _build(self, implementation: Implementation, system: AnySystem) -> Training:
        return implementation.build(system, self._dtype, self._params)

    def _row(self, name: str, timing: Timing) -> report.Row:
        return report.make_row(
            self._environment,
            timing,
            bench=BENCH,
            system=self._system.name,
            implementation=name,
            dtype=self._dtype,
            tokens=self._system.tokens_per_step,
            first_s=self._first_s[name],
            settings=self._trainings[name].settings,
            shape=dataclasses.asdict(self._system),
            peers_left_out=self.left_out,
        )


def measure_system(
    system: AnySystem, options: Options, found: Environment, out: TextIO
) -> tuple[list[report.Row], bool]:
    """Measures one system, and prints it.

    Args:
        system: its shape.
        options: all but `systems`, `json` and `plot`.
        found: what the process runs on.
        out: where to print.

    Returns:
        The rows, and whether every peer that is installed did the same work as ours.
    """
    installed, missing = find_installed(options.peers, peer_named)
    contest = _Contest(system, options.dtype, found, missing)
    contest.admit_ours(Ours())
    for peer in installed:
        contest.admit_peer(peer)
    for name, reason in contest.left_out.items():
        print(f"{system.name}: {name} is left out: {reason}", file=out, flush=True)
    rounds = min(options.rounds, _QUICK_ROUNDS) if options.quick else options.rounds
    rows = contest.measure(rounds)
    report.print_table(rows, out)
    print(f"the products of a step take {rows[0].settings['limit']}", file=out, flush=True)
    return rows, not contest.disagrees


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench.train_step")
    systems = systems_named(options.systems, quick=options.quick)
    found = environment()
    report.print_environment(found, sys.stdout)
    rows: list[report.Row] = []
    all_agree = True
    for system in systems:
        measured, agrees = measure_system(system, options, found, sys.stdout)
        rows += measured
        all_agree &= agrees
        if options.json is not None:
            report.write_json(rows, options.json)
    if options.plot is not None:
        draw_times(rows, options.plot)
    return 0 if all_agree else _DISAGREES


if __name__ == "__main__":
    sys.exit(run_command("bench.train_step", main))

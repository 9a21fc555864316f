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

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from bench import report
from bench.agreement import evidence, require_agreement
from bench.contest import QUICK_ROUNDS, Built, Contest, Measured, keep
from bench.environment import Environment, environment
from bench.implementation import Implementation, Training
from bench.measure import require_at_least_one
from bench.ours import Ours
from bench.peers import PEERS, find_installed, peer_named
from bench.plot import require_matplotlib
from bench.products import products_of_system
from bench.shapes import AnyParams, AnySystem, DType, systems_named
from lstm_jax.cli.arguments import parse, run_command

BENCH = "train_step"


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
        require_at_least_one(rounds=self.rounds)
        require_matplotlib(self.plot)


def measure_system(
    system: AnySystem, options: Options, found: Environment, out: TextIO
) -> Measured:
    """Measures one system, and prints it.

    Args:
        system: its shape.
        options: all but `systems`, `json` and `plot`.
        found: what the process runs on.
        out: where to print.
    """
    params: AnyParams = system.initial_params()

    def build(implementation: Implementation) -> Built:
        def built(system: AnySystem) -> Training:
            return implementation.build(system, options.dtype, params)

        training = built(system)
        return Built(
            training.step, training.settings, lambda: evidence(built(system.without_dropout()))
        )

    rounds = min(options.rounds, QUICK_ROUNDS) if options.quick else options.rounds
    peers = find_installed(options.peers, peer_named)
    tokens, products = system.tokens_per_step, products_of_system(system)
    contest = Contest(BENCH, system, options.dtype, tokens, products, build, require_agreement)
    rows, all_agree = contest.measure(Ours(), peers, rounds, found, out)
    print(f"the products of a step take {rows[0].settings['limit']}", file=out, flush=True)
    return rows, all_agree


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench.train_step")
    systems = systems_named(options.systems, quick=options.quick)
    found = environment()
    report.print_environment(found, sys.stdout)
    measured = (measure_system(system, options, found, sys.stdout) for system in systems)
    return keep(measured, options.json, options.plot)


if __name__ == "__main__":
    sys.exit(run_command("bench.train_step", main))

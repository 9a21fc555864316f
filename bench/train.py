"""One whole training step of a system (forward, backward, clip, Adam): ours beside its peers.

All of them start from the same weights, and train on the same random tokens in the same dtype.
Before that, with dropout off, each has to show that it does the same work: as many parameters, the
same first loss, the same drop of the loss. `limit_fraction` is the time of a step's matrix products
alone (see `bench.products`) over ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.agreement import learning, require_same_learning
from bench.command import OptionsWithPeers
from bench.contest import Check, Work, run
from bench.implementation import Implementation
from bench.products import products_of_system
from bench.shapes import AnySystem, DType, systems_named
from bench.workers import Built
from lstm_jax.cli.allocator import keep_memory_of_steps
from lstm_jax.cli.arguments import parse


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measures one training step of each system, ours beside its peers.

    Attributes:
        systems: which systems; none named means all, or, if quick, the first.
    """

    systems: tuple[str, ...] = ()


def build(peer: Implementation, system: AnySystem, dtype: DType) -> Built:
    """A training step of an implementation, in a process that has computed nothing yet."""
    keep_memory_of_steps(system.batch_size, system.hidden_size)  # as train.py does
    training = peer.training(system, dtype, system.initial_params())
    return Built({"step": training.step}, training.settings)


def work_of(system: AnySystem, dtype: DType) -> Work:
    """What is timed of a system, and how peers are checked."""
    same = partial(require_same_learning, dtype=dtype)
    check = Check(learning, (system, dtype), same)
    tokens, products = system.tokens_per_step, products_of_system(system)
    return Work("train", "training", system, tokens, products, build, check)


def main(arguments: Sequence[str]) -> int:
    """Runs the bench; 1 if a peer did other work than ours."""
    options = parse(Options, None, arguments, "bench train")
    systems = systems_named(options.systems, quick=options.quick)
    return run(options, [work_of(system, options.dtype) for system in systems])

"""One whole training step of a system (forward, backward, clip, Adam): ours and its peers.

All start from the same weights, and train on the same random tokens in the same dtype. First, with
dropout off, each must show that it does the same work: the number of parameters, the first loss,
and the drop in loss must agree. `limit_fraction` is the time of a step's matrix products alone (see
`bench.limits`) over that of our step.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bench.command import OptionsWithPeers
from bench.contest import Work, run
from bench.limits import products_of_system
from bench.peers import Implementation
from bench.shapes import AnySystem, DType, systems_named
from bench.workers import Built, Disagreement
from lstm_jax.cli.allocator import keep_memory_of_steps

STEPS = 2  # Number of training steps to compare, with dropout off.
_LOSS_TOLERANCE: dict[DType, float] = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 1e-2}
# Wide, because PyTorch trains its bias as two halves, each at the full rate: a difference of up to
# 9 percent in the systems, and 34 in a tiny one. Half or twice a learning rate would still show.
_DROP_TOLERANCE = 0.45


@dataclass(frozen=True)
class Options(OptionsWithPeers):
    """Measure one training step of each system, ours and its peers."""

    systems: tuple[str, ...] = ()  # systems to measure; by default all, or with `quick` the first.


class Learning(NamedTuple):
    """Number of parameters (without a cell's extra ones), first loss, its drop in `STEPS` steps."""

    parameters: int
    loss: float
    drop: float


def learning(peer: Implementation, system: AnySystem, dtype: DType) -> Learning:
    training = peer.training(system.without_dropout(), dtype, system.initial_params())
    before = training.loss()
    for _ in range(STEPS):
        training.step()
    return Learning(training.parameters, before, before - training.loss())


def require_same_learning(found: Learning, ours: Learning, dtype: DType) -> None:
    """Raise Disagreement if parameters, first loss or learning differ from ours."""
    if found.parameters != ours.parameters:
        raise Disagreement(f"trains {found.parameters} parameters, ours {ours.parameters}")
    for what, this, that, tolerance in (
        ("the first loss", found.loss, ours.loss, _LOSS_TOLERANCE[dtype]),
        (f"the drop of the loss in {STEPS} steps", found.drop, ours.drop, _DROP_TOLERANCE),
    ):
        if not abs(this - that) <= tolerance * abs(that):  # also true for NaN
            raise Disagreement(f"{what} is {this:.6g}, ours {that:.6g}, not within {tolerance:g}")


def build(peer: Implementation, system: AnySystem, dtype: DType) -> Built:
    """Build a training step of an implementation, in a process that has computed nothing yet."""
    keep_memory_of_steps(system.batch_size, system.hidden_size)  # as train.py does
    training = peer.training(system, dtype, system.initial_params())
    return Built({"step": training.step}, training.settings)


def work_of(system: AnySystem, dtype: DType) -> Work:
    given: Any = {"system": system, "dtype": dtype}
    return Work(
        *("train", system, system.tokens_per_step, products_of_system(system)),
        build=partial(build, **given),
        evidence=partial(learning, **given),
        require_same=partial(require_same_learning, dtype=dtype),
    )


def main(options: Options) -> int:
    systems = systems_named(options.systems, quick=options.quick)
    return run(options, [work_of(system, options.dtype) for system in systems])

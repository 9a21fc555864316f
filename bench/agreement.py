"""Whether two implementations do the same work: only then is it fair to time them side by side."""

from __future__ import annotations

from dataclasses import dataclass

from bench.implementation import DType, Training

STEPS = 2
"""Training steps that are compared, with dropout off."""

_LOSS_TOLERANCE: dict[DType, float] = {"float32": 1e-4, "bfloat16": 1e-2}
# Wide, for PyTorch learns its bias as two halves, each at the full rate: that was up to 9 percent
# in the systems, 34 in a tiny one. Half or twice a learning rate still shows.
_DROP_TOLERANCE = 0.45


class Disagreement(Exception):
    """An implementation does other work than ours."""


@dataclass(frozen=True)
class Evidence:
    """What an implementation computes from the shared weights and batches, with dropout off.

    Attributes:
        parameters: how many numbers it trains, without those its cell has beyond ours.
        loss: the first batch's, before any training.
        drop: how much lower that loss is after `STEPS` steps.
    """

    parameters: int
    loss: float
    drop: float


def evidence(training: Training) -> Evidence:
    """Lets a training without dropout, one step a call, show what it does."""
    before = training.loss()
    for _ in range(STEPS):
        training.step()
    parameters = training.parameters - training.parameters_beyond_ours
    return Evidence(parameters, before, before - training.loss())


def require_agreement(found: Evidence, ours: Evidence, dtype: DType) -> None:
    """Compares an implementation with ours.

    Raises:
        Disagreement: it trains another number of parameters, begins with another loss, or does not
            learn as fast.
    """
    if found.parameters != ours.parameters:
        raise Disagreement(f"trains {found.parameters} parameters, ours {ours.parameters}")
    _require_near("the first loss", found.loss, ours.loss, _LOSS_TOLERANCE[dtype])
    what = f"the drop of the loss in {STEPS} steps"
    _require_near(what, found.drop, ours.drop, _DROP_TOLERANCE)


def _require_near(what: str, found: float, ours: float, tolerance: float) -> None:
    if not abs(found - ours) <= tolerance * abs(ours):  # true of no NaN
        raise Disagreement(f"{what} is {found:.6g}, ours {ours:.6g}, not within {tolerance:g}")

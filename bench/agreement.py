"""Whether an implementation does the same work as ours: only then is it fair to compare times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.implementation import Implementation
from bench.shapes import AnySystem, DType, Job, LayerShape, System
from bench.workers import Disagreement
from lstm_jax.models import LanguageModelParams

STEPS = 2
"""Training steps that are compared, with dropout off."""

GREEDY = Job(batch=3, prompt_length=20, places=50, temperature=0.0)
"""The continuations that are compared, in float32."""

Arrays = Mapping[str, np.ndarray[Any, Any]]

_INPUT_SCALE, _RECURRENT_SCALE = 16.0, 2.0

_LOSS_TOLERANCE: dict[DType, float] = {"float32": 1e-4, "bfloat16": 1e-2}
# Wide, for PyTorch learns its bias as two halves, each at the full rate: that was up to 9 percent
# in the systems, 34 in a tiny one. Half or twice a learning rate still shows.
_DROP_TOLERANCE = 0.45
_GRADIENT_TOLERANCE: dict[DType, float] = {"float32": 1e-3, "bfloat16": 0.15}
"""Of a gradient's length. Peers keep the carry in bfloat16 too; other work is about 1 away."""


class Learning(NamedTuple):
    """Parameters (without those a cell has beyond ours), first loss, its drop in `STEPS` steps."""

    parameters: int
    loss: float
    drop: float


def learning(peer: Implementation, system: AnySystem, dtype: DType) -> Learning:
    """What `STEPS` training steps do to the loss."""
    training = peer.training(system.without_dropout(), dtype, system.initial_params())
    before = training.loss()
    for _ in range(STEPS):
        training.step()
    return Learning(training.parameters, before, before - training.loss())


def require_same_learning(found: Learning, ours: Learning, dtype: DType) -> None:
    """Raises Disagreement where it trains or begins with something else, or learns otherwise."""
    if found.parameters != ours.parameters:
        raise Disagreement(f"trains {found.parameters} parameters, ours {ours.parameters}")
    _require_near("the first loss", found.loss, ours.loss, _LOSS_TOLERANCE[dtype])
    what = f"the drop of the loss in {STEPS} steps"
    _require_near(what, found.drop, ours.drop, _DROP_TOLERANCE)


def _require_near(what: str, found: float, ours: float, tolerance: float) -> None:
    if not abs(found - ours) <= tolerance * abs(ours):  # true of no NaN
        raise Disagreement(f"{what} is {found:.6g}, ours {ours:.6g}, not within {tolerance:g}")


def gradients(peer: Implementation, shape: LayerShape, dtype: DType) -> Arrays:
    """A layer's gradients."""
    return peer.layer(shape, dtype, shape.work()).gradients()


def require_same_gradients(found: Arrays, ours: Arrays, dtype: DType) -> None:
    """Raises Disagreement with the first of a layer's gradients that is not ours."""
    for name, gradient in found.items():
        if gradient.shape != ours[name].shape:
            raise Disagreement(f"gradient of {name} is {gradient.shape}, ours {ours[name].shape}")
        away = np.linalg.norm(gradient - ours[name]) / np.linalg.norm(ours[name])
        if not away <= _GRADIENT_TOLERANCE[dtype]:  # true of no NaN
            raise Disagreement(f"gradient of {name} is {away:.2g} of its length away from ours")


def continuations(peer: Implementation, system: System) -> Arrays:
    """The most likely tokens `[places, B]`: as such, then drawn from the one likeliest token."""
    params = _scaled(system.initial_params())
    drawn = dataclasses.replace(GREEDY, temperature=1.0, top_n=1)
    return {
        name: peer.sampling(system, "float32", params, job).write()
        for name, job in (("greedy", GREEDY), ("top-n 1", drawn))
    }


def _scaled(params: LanguageModelParams) -> LanguageModelParams:
    """The weights made so large that what is written hangs on all of them.

    From the usual ones a text soon repeats the token that the output layer's bias favours, whatever
    the layers below compute.
    """
    layers = tuple(
        layer._replace(w_x=layer.w_x * _INPUT_SCALE, w_h=layer.w_h * _RECURRENT_SCALE)
        for layer in params.layers
    )
    return params._replace(layers=layers, output=params.output._replace(b=params.output.b * 0))


def require_same_continuations(found: Arrays, ours: Arrays) -> None:
    """Raises Disagreement with the first place where what `continuations` gives differs."""
    for how, those in ours.items():
        these = found[how]
        if these.shape != those.shape:
            raise Disagreement(f"{how} tokens are {these.shape}, ours {those.shape}")
        if (these != those).any():
            place, row = (int(index) for index in np.argwhere(these != those)[0])
            tokens = f"is {these[place, row]}, ours {those[place, row]}"
            raise Disagreement(f"{how} token {place} of text {row} {tokens}")

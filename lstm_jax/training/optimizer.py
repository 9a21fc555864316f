"""Adam or SGD with clipping by global norm, averages of weights, and learning-rate schedules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lstm_jax.systems.base import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the number of previous updates."""
    peak, interval = config.learning_rate, config.decay_steps
    match config.schedule:
        case "cosine":
            length = interval or max(1, total_steps - config.warmup_steps)
            after = optax.cosine_decay_schedule(peak, length, alpha=config.final_share)
        case "step" | "exponential":
            after = optax.exponential_decay(
                peak, interval or 1, config.decay_rate, staircase=config.schedule == "step"
            )
        case _:
            after = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return after
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Clip by global norm, then apply Adam (Kingma and Ba, arXiv:1412.6980) or SGD.

    Fields of the parameters in `frozen` are not updated and have no moments.
    """
    # Without clipping, a stateless identity takes its place, so checkpoints match either way.
    norm = config.clip_norm
    clip = optax.identity() if norm is None else optax.clip_by_global_norm(norm)
    learn = optax.chain(clip, _method(config, schedule))
    if frozen:
        learn = optax.partition(
            {False: learn, True: optax.set_to_zero()},
            lambda params: type(params)(*(name in frozen for name in params._fields)),
        )
    return optax.chain(learn, average_weights()) if config.average_after else learn


def changes_of_state(old: OptimizerConfig, new: OptimizerConfig) -> set[str]:
    """Settings whose change from `old` to `new` gives the optimizer's state another structure."""
    found = {"method"} if old.method != new.method else set()
    for name in ("average_after", *(("weight_decay",) if new.method == "adam" else ())):
        if bool(getattr(old, name)) != bool(getattr(new, name)):
            found.add(name)
    return found


def _method(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    decay = config.weight_decay
    if config.method == "sgd":
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(schedule))
    means = {"b1": config.beta1, "b2": config.beta2, "eps": config.epsilon}
    if not decay:
        return optax.adam(schedule, **means)
    return optax.adamw(schedule, weight_decay=decay, **means)


class AverageState(NamedTuple):
    """State of `average_weights`."""

    average: Any
    steps: Array  # int32, 1 + the number of averaged updates; 0 before `averaging`


AVERAGE = "opt_state/1/average"
"""Path of the averaged weights in a checkpoint."""


def average_weights() -> optax.GradientTransformation:
    """Keep the mean of the weights since `averaging`; before that, a copy of the weights.

        average_k = average_{k-1} + (w_k - average_{k-1}) / k

    (Polyak and Juditsky, 1992). It must be last in a chain; updates pass through unchanged.
    """

    def init(params: Any) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        number, is_on = jnp.maximum(state.steps, 1), state.steps > 0

        def mean(average: Array, new: Array) -> Array:
            return jnp.where(is_on, average + (new - average) / number, new)

        new = optax.apply_updates(params, updates)
        average = jax.tree.map(mean, state.average, new)
        return updates, AverageState(average, state.steps + is_on)

    return optax.GradientTransformation(init, update)


def averaging(opt_state: Any) -> Any:
    """The optimizer's state with averaging switched on; unchanged if it is on."""
    *others, last = opt_state
    return (*others, last._replace(steps=jnp.maximum(last.steps, 1)))


def averaged(opt_state: Any, params: Any) -> Any:
    """The weights to use: the average if the optimizer keeps one, else the parameters."""
    last = opt_state[-1]
    return last.average if isinstance(last, AverageState) else params

"""Adam with clipping by global norm, and the learning-rate schedules."""

from typing import Any

import optax

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
    """Clip by global norm, then apply Adam (Kingma and Ba, arXiv:1412.6980).

    Fields of the parameters in `frozen` are not updated and have no moments.
    """
    # Without clipping, a stateless identity takes its place, so checkpoints match either way.
    norm = config.clip_norm
    clip = optax.identity() if norm is None else optax.clip_by_global_norm(norm)
    adam = optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    learn = optax.chain(clip, adam)
    if not frozen:
        return learn

    def is_frozen(params: Any) -> Any:
        return type(params)(*(name in frozen for name in params._fields))

    return optax.partition({False: learn, True: optax.set_to_zero()}, is_frozen)

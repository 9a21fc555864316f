"""Reinforcement learning on sequences that contain several episodes, separated by `resets`.

The first step of an episode shows a cue, and some steps later the agent must repeat it; then a new
episode begins. The agent acts step by step. To learn, it runs the layer once over the whole rollout
with resets where episodes begin, and follows the policy gradient of the rewards.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax, random

from lstm_jax import LSTMCarry, LSTMParams, init_lstm, lstm, zero_carry

CUES, LONGEST, TIMES, BATCH, HIDDEN, STEPS = 4, 5, 24, 64, 32, 120
OBSERVED = CUES + 1


class Policy(NamedTuple):
    """The layer, and `[H, CUES]`, which maps its outputs to the logits of actions."""

    layer: LSTMParams
    readout: Array


class Episodes(NamedTuple):
    """The environments, int `[B]` each: cue, steps so far, and steps in the episode."""

    cue: Array
    time: Array
    length: Array


class Rollout(NamedTuple):
    """What happened: `seen` is `[T, B, OBSERVED]`, the others `[T, B]`."""

    seen: Array
    resets: Array
    action: Array
    reward: Array
    asked: Array


def begin(key: Array) -> Episodes:
    """New episodes, of 2 to LONGEST steps."""
    key_cue, key_length = random.split(key)
    cue = random.randint(key_cue, (BATCH,), 0, CUES)
    length = random.randint(key_length, (BATCH,), 2, LONGEST + 1)
    return Episodes(cue, jnp.zeros(BATCH, jnp.int32), length)


def act(
    policy: Policy, carry: LSTMCarry, episodes: Episodes, key: Array
) -> tuple[LSTMCarry, Episodes, Rollout]:
    """Plays TIMES steps from the current state of the episodes."""

    def step(
        state: tuple[LSTMCarry, Episodes], key: Array
    ) -> tuple[tuple[LSTMCarry, Episodes], Rollout]:
        carry, now = state
        key_action, key_begin = random.split(key)
        is_first, is_asked = now.time == 0, now.time == now.length - 1
        shown = jax.nn.one_hot(now.cue, CUES) * is_first[:, None]
        seen = jnp.concatenate([shown, is_asked[:, None]], axis=1)
        carry, hs = lstm(policy.layer, carry, seen[None], resets=is_first[None])
        action = random.categorical(key_action, hs[0] @ policy.readout)
        reward = (is_asked & (action == now.cue)).astype(jnp.float32)
        later = now._replace(time=now.time + 1)
        after = jax.tree.map(lambda a, b: jnp.where(is_asked, a, b), begin(key_begin), later)
        return (carry, after), Rollout(seen, is_first, action, reward, is_asked)

    (carry, episodes), rollout = lax.scan(step, (carry, episodes), random.split(key, TIMES))
    return carry, episodes, rollout


def loss(policy: Policy, carry: LSTMCarry, rollout: Rollout) -> Array:
    """The policy gradient's surrogate loss; the baseline is the expected reward of a guess."""
    _, hs = lstm(policy.layer, carry, rollout.seen, resets=rollout.resets)
    log_policy = jax.nn.log_softmax(hs @ policy.readout)
    chosen = jnp.take_along_axis(log_policy, rollout.action[..., None], axis=-1)[..., 0]
    advantage = rollout.asked * (rollout.reward - 1 / CUES)
    return -jnp.sum(advantage * chosen) / rollout.asked.sum()


def largest_difference(policy: Policy, rollout: Rollout) -> float:
    """How much a sequence with resets differs from its episodes run separately."""
    seen, resets = rollout.seen[:, :1], rollout.resets[:, :1]
    _, whole = lstm(policy.layer, None, seen, resets=resets)
    starts = [int(start) for start in jnp.flatnonzero(resets)]
    bounds = zip([0, *starts], [*starts, TIMES], strict=True)
    apart = [lstm(policy.layer, None, seen[a:b])[1] for a, b in bounds if a < b]
    return float(jnp.abs(whole - jnp.concatenate(apart)).max())


def main() -> tuple[float, float]:
    """Trains the policy; returns the share of right answers, and the largest difference."""
    key = random.key(0)
    layer = init_lstm(key, OBSERVED, HIDDEN, initialisation="keras")
    policy = Policy(layer, jnp.zeros((HIDDEN, CUES)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    @jax.jit
    def train_step(
        policy: Policy, state: optax.OptState, carry: LSTMCarry, episodes: Episodes, step: Array
    ) -> tuple[Policy, optax.OptState, LSTMCarry, Episodes, Rollout]:
        after, episodes, rollout = act(policy, carry, episodes, random.fold_in(key, step))
        updates, state = optimizer.update(jax.grad(loss)(policy, carry, rollout), state)
        return optax.apply_updates(policy, updates), state, after, episodes, rollout

    state, carry, episodes = optimizer.init(policy), zero_carry(layer, BATCH), begin(key)
    for step in range(STEPS):
        policy, state, carry, episodes, rollout = train_step(policy, state, carry, episodes, step)
    right = float(rollout.reward.sum() / rollout.asked.sum())
    difference = largest_difference(policy, rollout)
    print(f"right answers {right:.0%}, by chance {1 / CUES:.0%}; episodes differ by {difference:g}")
    return right, difference


if __name__ == "__main__":
    main()

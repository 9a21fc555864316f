"""A forecaster: an LSTM layer and a linear readout, trained with optax to predict the next value.

Each series is the sum of two waves of random length and phase, so the model must infer both from
the past values. The baseline predicts the last value again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, random

from lstm_jax import LSTMParams, init_lstm, lstm

TIMES, BATCH, HIDDEN, STEPS = 60, 32, 32, 300


class Forecaster(NamedTuple):
    """The layer, and `[H, 1]`, which maps its outputs to a change of value."""

    layer: LSTMParams
    readout: Array


def draw_series(key: Array) -> Array:
    """Random series, `[T + 1, B, 1]`."""
    key_length, key_phase = random.split(key)
    length = random.uniform(key_length, (2, BATCH), minval=8, maxval=30)
    phase = random.uniform(key_phase, (2, BATCH))
    times = jnp.arange(TIMES + 1)[:, None, None]
    return jnp.sin(2 * jnp.pi * (times / length + phase)).sum(1)[..., None]


def mean_squared_error(model: Forecaster, series: Array) -> Array:
    """The error of forecasts one step ahead, over the second half of the series."""
    _, hs = lstm(model.layer, None, series[:-1])
    forecast = series[:-1] + hs @ model.readout
    return jnp.mean((forecast - series[1:])[TIMES // 2 :] ** 2)


def main() -> tuple[float, float]:
    """Trains the model; returns its error on unseen series, and the baseline's."""
    key = random.key(0)
    model = Forecaster(init_lstm(key, 1, HIDDEN), jnp.zeros((HIDDEN, 1)))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    @jax.jit
    def train_step(model: Forecaster, state: optax.OptState, step: Array) -> tuple[Forecaster, ...]:
        series = draw_series(random.fold_in(key, step))
        gradient = jax.grad(mean_squared_error)(model, series)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, updates), state

    state = optimizer.init(model)
    for step in range(STEPS):
        model, state = train_step(model, state, step)
    unseen = draw_series(random.key(1))
    error = float(mean_squared_error(model, unseen))
    baseline = float(mean_squared_error(model._replace(readout=0 * model.readout), unseen))
    print(f"mean squared error {error:.5f}; repeating the last value {baseline:.5f}")
    return error, baseline


if __name__ == "__main__":
    main()

"""A cell of your own in a language model: an LSTM with peepholes learns to say tokens again."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax, random

from lstm_jax import LanguageModel, LanguageModelConfig, LSTMCarry, declare_cell, init_lstm


class PeepholeParams(NamedTuple):
    """Those of an LSTM, and p `[3, H]`: by how much the gates i, f and o see the cell."""

    w_x: Array
    w_h: Array
    b: Array
    p: Array


def _init(key: Array, input_size: int, hidden_size: int, **options: Any) -> PeepholeParams:
    lstm = init_lstm(key, input_size, hidden_size, **options)
    return PeepholeParams(lstm.w_x, lstm.w_h, lstm.b, jnp.zeros((3, hidden_size), lstm.b.dtype))


def _step(params: PeepholeParams, carry: LSTMCarry, gates: Array, dot: Any) -> LSTMCarry:
    i, f, g, o = jnp.split(gates + dot(carry.h, params.w_h), 4, axis=-1)
    i, f = jax.nn.sigmoid(i + params.p[0] * carry.c), jax.nn.sigmoid(f + params.p[1] * carry.c)
    c = f * carry.c + i * jnp.tanh(g)
    return LSTMCarry(h=jax.nn.sigmoid(o + params.p[2] * c) * jnp.tanh(c), c=c)


def main() -> tuple[float, float]:
    """Declares the cell and trains it; returns the first loss and the last."""
    peephole = declare_cell("peephole", 4, PeepholeParams, LSTMCarry, _init, _step)
    model = LanguageModel(LanguageModelConfig(cell=peephole, hidden_size=32), vocabulary_size=8)
    adam, start = optax.adam(1e-2), model.init(random.key(0))

    def loss(params: Any, key: Array) -> Array:
        heard = random.randint(key, (3, 64), 1, 8)
        tokens = jnp.concatenate([heard, jnp.zeros((1, 64), int), heard])
        targets = tokens[1:].at[:3].set(-1)  # no token: not counted
        return model.token_sums(params, None, tokens[:-1], targets)[0].loss / (3 * 64)

    def train(state: Any, key: Array) -> tuple[Any, Array]:
        value, gradient = jax.value_and_grad(loss)(state[0], key)
        updates, moments = adam.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), moments), value

    _, losses = lax.scan(train, (start, adam.init(start)), random.split(random.key(1), 400))
    print(f"loss {losses[0]:.2f}, after {len(losses)} steps {losses[-1]:.4f}")
    return float(losses[0]), float(losses[-1])


if __name__ == "__main__":
    main()

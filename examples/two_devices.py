"""Data parallelism by hand: `shard_map` over two devices, half of the batch on each.

Each device runs the layer on its own sequences. The parameters are replicated, so JAX sums their
gradients over the devices, and each step equals that of one device with the whole batch.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.sharding import AxisType, PartitionSpec

from lstm_jax import LSTMParams, init_lstm, lstm

TIMES, BATCH, SIZE, HIDDEN, RATE = 12, 8, 4, 4, 0.5


def loss(params: LSTMParams, xs: Array, targets: Array) -> Array:
    """Mean squared error."""
    return jnp.mean((lstm(params, None, xs)[1] - targets) ** 2)


def descend(
    loss: Callable[..., Array], params: LSTMParams, xs: Array, targets: Array
) -> tuple[Array, Array]:
    """Takes 50 gradient steps; returns the losses, and the final input weights."""

    def step(params: LSTMParams, _: None) -> tuple[LSTMParams, Array]:
        value, gradient = jax.value_and_grad(loss)(params, xs, targets)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), value

    params, losses = lax.scan(step, params, length=50)
    return losses, params.w_x


def main() -> tuple[float, float, float]:
    """Returns the first and the last loss, and how much two devices differ from one."""
    keys = random.split(random.key(0), 3)
    params = init_lstm(keys[0], SIZE, HIDDEN)
    xs = random.normal(keys[1], (TIMES, BATCH, SIZE))
    _, targets = lstm(init_lstm(keys[2], SIZE, HIDDEN), None, xs)

    whole, split = PartitionSpec(), PartitionSpec(None, "data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def mean_loss(params: LSTMParams, xs: Array, targets: Array) -> Array:
        mean: Array = lax.pmean(loss(params, xs, targets), "data")
        return mean

    on_two = jax.shard_map(
        partial(descend, mean_loss),
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=(whole, whole),
    )
    losses, w_x = jax.jit(on_two)(params, xs, targets)
    _, expected = jax.jit(partial(descend, loss))(params, xs, targets)
    # They are on different devices, so compare them on the host.
    difference = float(abs(jax.device_get(w_x) - jax.device_get(expected)).max())
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f} on two devices; one differs by {difference:g}")
    return float(losses[0]), float(losses[-1]), difference


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main()

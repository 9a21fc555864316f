"""Cost of top-n and top-p filtering over a large vocabulary.

Ours finds the threshold by bisection, with n and p as traced values; the others sort, or use
`lax.top_k`, whose n is fixed at compile time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from bench.peers import OURS
from bench.workers import Built, Disagreement
from lstm_jax.sampling.filters import keep_top_n, keep_top_p

VOCABULARY_SIZE = 8009
TOP_P = 0.9
KINDS = ("top-n", "top-p")

_MOST_DIFFERENT = {"top-n": 0, "top-p": 1}
"""Tokens per row at the edge of a nucleus, for which sums in another order round differently."""

Filter = Callable[[Array], Array]


def build_filters(kind: str, batch: int, top_n: int, size: int) -> Built:
    """A call for each way to filter logits; Disagreement if one keeps other tokens than ours."""
    logits_BV = random.normal(random.key(0), (batch, size))
    filters = _top_n(top_n) if kind == "top-n" else _top_p()
    kept = {name: np.isfinite(np.asarray(run(logits_BV))) for name, run in filters.items()}
    for name, these in kept.items():
        different = int((these != kept[OURS]).sum(-1).max())
        if different > _MOST_DIFFERENT[kind]:
            raise Disagreement(f"{kind} by {name} keeps {different} tokens of a row otherwise")

    def call(run: Filter) -> Callable[[], object]:
        compiled = jax.jit(run)
        return lambda: jax.block_until_ready(compiled(logits_BV))

    return Built({name: call(run) for name, run in filters.items()}, {})


def _top_n(top_n: int) -> dict[str, Filter]:
    traced = jnp.int32(top_n)
    return {
        OURS: lambda logits: keep_top_n(logits, traced),
        "jnp.sort": lambda logits: _not_below(logits, jnp.sort(logits)[:, -top_n, None]),
        # The minimum, not the last: XLA turns a slice into a sort, 20 to 100 times as slow.
        "lax.top_k": lambda logits: _not_below(
            logits, lax.top_k(logits, top_n)[0].min(-1, keepdims=True)
        ),
    }


def _top_p() -> dict[str, Filter]:
    traced = jnp.float32(TOP_P)
    return {
        OURS: lambda logits: keep_top_p(logits, traced),
        "jnp.sort": lambda logits: _nucleus(logits, jnp.sort(logits, descending=True)),
        "lax.top_k": lambda logits: _nucleus(logits, lax.top_k(logits, logits.shape[-1])[0]),
    }


def _nucleus(logits_BV: Array, falling_BV: Array) -> Array:
    shares_BV = jax.nn.softmax(falling_BV)
    before_BV = jnp.cumsum(shares_BV, axis=-1) - shares_BV
    last_B = jnp.sum(before_BV < TOP_P, axis=-1) - 1
    return _not_below(logits_BV, jnp.take_along_axis(falling_BV, last_B[:, None], axis=-1))


def _not_below(logits_BV: Array, threshold_B1: Array) -> Array:
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)

"""What it costs to keep the n likeliest tokens of a large vocabulary, or the likeliest share.

Ours finds the threshold by bisection, and n and p are traced values; the others sort, or take
`lax.top_k`, whose n is fixed when it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from bench import report
from bench.agreement import Disagreement
from bench.environment import Environment
from bench.measure import interleave, seconds
from lstm_jax.sampling.filters import keep_top_n, keep_top_p

VOCABULARY_SIZE = 8009
TOP_P = 0.9

_MOST_DIFFERENT = 1
"""Tokens a row at the edge of a nucleus, where sums in another order round another way."""

Filter = Callable[[Array], Array]


def measure_filters(
    bench: str, found: Environment, *, batch: int, top_n: int, rounds: int
) -> tuple[list[report.Row], list[report.Row]]:
    """The rows of top-n and of top-p.

    Args:
        bench: see `report.Row`.
        found: what it runs on.
        batch: rows of logits.
        top_n: n.
        rounds: see `interleave`.

    Raises:
        Disagreement: a filter keeps other tokens than ours.
    """
    logits_BV = random.normal(random.key(0), (batch, VOCABULARY_SIZE))
    kinds: dict[str, tuple[dict[str, Filter], dict[str, object]]] = {
        "top-n": (_top_n_filters(top_n), {"top_n": top_n}),
        "top-p": (_top_p_filters(), {"top_p": TOP_P}),
    }
    top_n_rows, top_p_rows = (
        _measure(bench, found, kind, filters, logits_BV, numbers, rounds)
        for kind, (filters, numbers) in kinds.items()
    )
    return top_n_rows, top_p_rows


def _measure(
    bench: str,
    found: Environment,
    kind: str,
    filters: Mapping[str, Filter],
    logits_BV: Array,
    numbers: Mapping[str, object],
    rounds: int,
) -> list[report.Row]:
    def call(run: Filter) -> Callable[[], object]:
        return lambda: jax.block_until_ready(run(logits_BV))

    calls = {name: call(jax.jit(run)) for name, run in filters.items()}
    first_s = {name: seconds(each) for name, each in calls.items()}
    _require_same(kind, {name: run(logits_BV) for name, run in filters.items()})
    batch, size = logits_BV.shape
    rows = [
        report.make_row(
            found,
            timing,
            bench=bench,
            system=f"filter {kind} {size}",
            implementation=name,
            dtype="float32",
            tokens=batch,
            first_s=first_s[name],
            settings={},
            shape={"batch": batch, "vocabulary_size": size, **numbers},
            peers_left_out={},
        )
        for name, timing in interleave(calls, rounds).items()
    ]
    return report.with_ratios(rows)


def _require_same(kind: str, filtered: Mapping[str, Array]) -> None:
    kept = {name: np.isfinite(np.asarray(logits)) for name, logits in filtered.items()}
    ours = kept[report.OURS]
    for name, these in kept.items():
        different = int((these != ours).sum(-1).max())
        if different > (_MOST_DIFFERENT if kind == "top-p" else 0):
            raise Disagreement(f"{kind} by {name} keeps {different} tokens of a row otherwise")


def _top_n_filters(top_n: int) -> dict[str, Filter]:
    traced = jnp.int32(top_n)
    return {
        report.OURS: lambda logits: keep_top_n(logits, traced),
        "jnp.sort": lambda logits: _not_below(logits, jnp.sort(logits)[:, -top_n, None]),
        # Its minimum, not its last: XLA turns a slice of it into a sort, 20 to 100 times as slow.
        "lax.top_k": lambda logits: _not_below(
            logits, lax.top_k(logits, top_n)[0].min(-1, keepdims=True)
        ),
    }


def _top_p_filters() -> dict[str, Filter]:
    traced = jnp.float32(TOP_P)
    return {
        report.OURS: lambda logits: keep_top_p(logits, traced),
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

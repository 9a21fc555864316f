"""A state with leaves of all kinds, and folders of checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from runs import Bits, bits_of

from lstm_jax.training.checkpoint import CheckpointStore


class Weights(NamedTuple):
    w: jax.Array
    b: jax.Array | None


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_state(seed: int = 0, width: int = 5) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    w = jax.random.normal(keys[0], (4, width))
    params = {"cell": Weights(w, None), "out": [w.astype(jnp.bfloat16), w.astype(jnp.float16)]}
    moments = (w * 2, {"nu": w**2, "empty": jnp.zeros((0, 3)), "mask": w > 0})
    return State(jnp.int32(seed), params, (moments, jnp.uint32(7)), keys[1])


def bits(tree: Any) -> list[Bits]:
    """Of every leaf: equal only if they are bit for bit."""
    return list(bits_of(tree).values())


def fill(directory: Path, *steps: int, **options: Any) -> None:
    with CheckpointStore(directory, **options) as store:
        for step in steps:
            store.save(step, make_state(step), {"step": step})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())

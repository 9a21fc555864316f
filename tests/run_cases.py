"""What tests of runs share: a text, what makes two runs equal, and limits such as a full disk's."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import Task, restored_state

TEXT = "".join(f"{n} bottles of milk in row {n % 7} of the wall.\n" for n in range(400))
Bits = tuple[str, tuple[int, ...], bytes]
"""Of an array: its dtype, shape and bytes."""


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """What each path below a folder is: its kind, and what it holds or points to."""

    def held(path: Path) -> bytes | str:
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else b""

    paths = folder.rglob("*")
    return {str(path.relative_to(folder)): (path.lstat().st_mode, held(path)) for path in paths}


def bits_of(tree: Any) -> dict[str, Bits]:
    """Of each leaf, by its path."""

    def bits(leaf: Any) -> Bits:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return str(leaf.dtype), leaf.shape, raw.tobytes()

    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): bits(leaf) for path, leaf in found}


def unequal(one: Any, other: Any) -> list[str]:
    """The paths of leaves that are not bit for bit the same."""
    return sorted({path for path, _ in bits_of(one).items() ^ bits_of(other).items()})


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics, without the time that they took."""
    rows = read_rows(RunFolder(run).metrics)
    return [{k: row[k] for k in row if k not in ("seconds", "tokens_per_second")} for row in rows]


def saved_state(run: Path, task: Task, step: int | None = None) -> Any:
    """Of a checkpoint, by default the newest."""
    store = CheckpointStore(RunFolder(run).checkpoints, read_only=True)
    return restored_state(task, store, step=step)[0]


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """Less of a resource than this process may have otherwise."""
    limits = resource.getrlimit(what)
    resource.setrlimit(what, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, limits)


files_of_at_most = partial(limited, resource.RLIMIT_FSIZE)
"""What a full disk does to a write: an error from the system in the middle of it."""

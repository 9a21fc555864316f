"""The arrays of a checkpoint: names, dtypes, shapes, checksums and placement."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.training.processes import gathered


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found, read or matched; says where and what to do."""


class DamagedError(CheckpointError):
    """A step cannot be trusted; an older one may still be good."""


def named_leaves(tree: Any, prefix: str) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by path; attributes, keys and indices look alike, so containers may differ."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        parts = prefix, jax.tree_util.keystr(path, simple=True, separator="/")
        name = "/".join(filter(None, parts))
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise CheckpointError(f"leaf {name!r} is {leaf!r}; make it an array")
        if name in named or "//" in f"{name}/":
            raise CheckpointError(f"leaf name {name!r} is taken or has an empty part; rename it")
        named[name] = leaf
    return named, treedef


def described(state: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The arrays of a state as Orbax takes them, and the record's entry for each leaf."""
    leaves, _ = named_leaves(state, "")
    arrays: dict[str, Any] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        entries[name] = {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        if isinstance(leaf, jax.Array):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                entries[name]["key_impl"] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            if leaf.is_fully_addressable:
                leaf.copy_to_host_async()
        elif leaf.dtype.kind in "OSUMm" or not leaf.dtype.isnative:
            raise CheckpointError(f"leaf {name!r} is {leaf.dtype.str}; make it a JAX array")
        arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    split: dict[str, list[Any]] = {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
            entries[name]["crc32"] = crc32_of(np.asarray(array))
        else:
            own = [part for part in array.addressable_shards if part.replica_id == 0]
            split[name] = [[_region(part, array), crc32_of(np.asarray(part.data))] for part in own]
    for process in map(json.loads, gathered(json.dumps(split)) if split else []):
        for name, parts in process.items():
            entries[name].setdefault("parts", []).extend(parts)
    full = {name: array for name, array in arrays.items() if array.size}
    if not full:
        raise CheckpointError("the state holds no values; pass the whole training state")
    return full, entries


def _region(part: Any, array: jax.Array) -> list[list[int]]:
    """Start and end, along each axis, of a part of an array."""
    sizes = zip(part.index, array.shape, strict=True)
    return [list(each.indices(size)[:2]) for each, size in sizes]


def match(
    entries: dict[str, dict[str, Any]], wanted: dict[str, Any], prefix: str, path: Path
) -> dict[str, dict[str, Any]]:
    """Select the entries under `prefix`, provided that they match the wanted leaves exactly."""
    start = f"{prefix}/" if prefix else ""
    saved = {name: entry for name, entry in entries.items() if f"{name}/".startswith(start)}
    problems = [f"{name!r} is not in the checkpoint" for name in wanted if name not in saved]
    problems += [f"{name!r} is not in the template" for name in saved if name not in wanted]
    for name in (name for name in wanted if name in saved):
        dtype: Any = wanted[name].dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and "key_impl" in saved[name]:
            dtype = saved[name]["dtype"]  # a key keeps its implementation
        has = f"{saved[name]['dtype']}{saved[name]['shape']}"
        wants = f"{dtype}{list(wanted[name].shape)}"
        if has != wants:
            problems.append(f"{name!r} is {has} in the checkpoint, {wants} in the template")
    if problems:
        shown = "; ".join(problems[:4]) + f" and {len(problems) - 4} more" * (len(problems) > 4)
        cure = "build the state with the settings it was saved with"
        raise CheckpointError(f"{path} does not match the template: {shown}; {cure}")
    return saved


def place(value: np.ndarray, entry: dict[str, Any], name: str, leaf: Any) -> jax.Array:
    """Place a value like the leaf of the template."""
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise CheckpointError(f"leaf {name!r} is {value.dtype}; set jax_enable_x64 to load it")
    uncommitted = isinstance(leaf, jax.Array) and not leaf.committed
    there: Any = None if uncommitted else getattr(leaf, "sharding", None)
    is_shared = there is not None and not there.is_fully_addressable
    array: Any = value
    if is_shared:
        array = jax.make_array_from_callback(value.shape, there, value.__getitem__)
    if "key_impl" in entry:
        array = jax.random.wrap_key_data(array, impl=entry["key_impl"])
    return array if is_shared else jax.device_put(array, there)


def crc32_of(value: np.ndarray) -> int:
    """CRC-32 of dtype, shape and bytes."""
    label = f"{value.dtype}{value.shape}".encode()
    raw: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return zlib.crc32(raw, zlib.crc32(label))

"""Data parallelism: the mesh, where each array lives on it, and types inside `shard_map`.

Only the batch axis is split. Parameters are whole on every device; XLA adds the all-reduces of
gradients and sums that follow from it: one for each chunk of the loss, one for all else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def data_mesh(devices: int) -> Mesh:
    """A mesh of the first `devices` local devices along one axis.

    Raises:
        ValueError: there are fewer.
    """
    local = jax.local_devices()
    if not 1 <= devices <= len(local):
        raise ValueError(
            f"devices is {devices}, but this process sees {len(local)} ({local[0].platform}); "
            "lower it (on CPU, JAX_NUM_CPU_DEVICES=N splits the processor into N devices)"
        )
    return jax.make_mesh(
        (devices,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=local[:devices]
    )


def put_whole(mesh: Mesh, tree: Any) -> Any:
    """Puts every array of the tree on the mesh, whole on each device."""
    return _put(mesh, tree, PartitionSpec())


def split_batch(mesh: Mesh, tree: Any, axis: int) -> Any:
    """Puts every array of the tree on the mesh, split along its batch axis.

    Raises:
        ValueError: the batch does not divide evenly among the devices.
    """
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[axis] % mesh.size:
            raise ValueError(
                f"a batch of {leaf.shape[axis]} does not divide among {mesh.size} devices; "
                "choose a batch size that is a multiple of their number"
            )
    return _put(mesh, tree, PartitionSpec(*[None] * axis, DATA_AXIS))


def _put(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    # On one device arrays stay plain: beside one that is on a mesh, a step that gives back plain
    # ones would be compiled twice.
    if mesh.size == 1:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def vary_as(xs: Array, tree: Any) -> Any:
    """Gives arrays the device-varying type of `xs`, which loops inside `shard_map` insist on.

    Done out here, JAX transposes it: a replicated weight's gradient is summed over the devices.
    """

    def axes(array: Array) -> frozenset[str]:
        return jax.typeof(array).manual_axis_type.varying  # type: ignore[no-any-return]

    def vary(array: Array) -> Array:
        missing = tuple(sorted(axes(xs) - axes(array)))
        return lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(vary, tree)

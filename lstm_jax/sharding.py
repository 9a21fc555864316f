"""Data parallelism: the mesh, where each array lives on it, and what devices tell each other.

Each device has its rows of the batch, and all parameters. Inside `jax.shard_map` it computes the
gradient of its own rows (of parameters made `varying`, so that JAX adds nothing up by itself), and
`summed` adds all of them up in a single all-reduce.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"

Tree = TypeVar("Tree")

_WHOLE = PartitionSpec()


def data_mesh(devices: int, batch_size: int = 0) -> Mesh:
    """A mesh of `devices` devices along one axis: of all processes, or the first local ones.

    Raises:
        ValueError: there are not as many, or a batch of this size does not divide among them.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> mesh.axis_names
        ('data',)
    """
    found = jax.devices()
    is_shared = jax.process_count() > 1
    if not 1 <= devices <= len(found) or (is_shared and devices != len(found)):
        number = f"{len(found)} ({found[0].platform})"
        raise ValueError(
            f"devices is {devices}, but there are {number} in {jax.process_count()} processes, "
            "all of which take part; give that number"
            if is_shared
            else f"devices is {devices}, but this process sees {number}; lower it (on CPU, "
            "JAX_NUM_CPU_DEVICES=N splits the processor into N devices)"
        )
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {devices} devices; choose a batch size "
            "that is a multiple of their number"
        )
    return jax.make_mesh(
        (devices,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=found[:devices]
    )


def rows_at(axis: int | None) -> PartitionSpec:
    """How an array is split whose rows of the batch lie along this axis; None, not at all.

    Examples:
        >>> lstm_jax.sharding.rows_at(1) == jax.P(None, "data")  # of xs [T, B, D]
        True
    """
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, DATA_AXIS)


def put(mesh: Mesh, tree: Any, axis: int | None) -> Any:
    """Puts every array of the tree on the mesh, split as `rows_at` says.

    Each process has the whole arrays, and takes what its devices need.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> xs = lstm_jax.sharding.put(mesh, np.ones((10, 4, 3)), axis=1)
        >>> xs.sharding.device_set == {*mesh.devices.flat}
        True
    """
    # On one device arrays stay plain: beside one that is on a mesh, a step that gives back plain
    # ones would be compiled twice.
    if mesh.size == 1:
        return jax.tree.map(jnp.asarray, tree)
    return put_at(NamedSharding(mesh, rows_at(axis)), tree)


def put_at(places: Any, tree: Tree) -> Tree:
    """As `put`, each array at its place: shardings, in a tree of this structure or the top of it.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> xs = np.ones((8 * mesh.size, 3))
        >>> split = lstm_jax.sharding.split_among(mesh, xs.shape)
        >>> lstm_jax.sharding.put_at(split, xs).addressable_shards[0].data.shape
        (8, 3)
    """

    def placed(place: NamedSharding, array: Any) -> Array:
        if isinstance(array, Array) and array.sharding.is_equivalent_to(place, array.ndim):
            return array
        # Not `device_put`, which has all processes compare what they were given.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, array.__getitem__)

    def placed_all(place: NamedSharding, part: Any) -> Any:
        return jax.tree.map(partial(placed, place), part)

    found: Tree = jax.tree.map(placed_all, places, tree)
    return found


def split_among(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec = _WHOLE) -> NamedSharding:
    """Where an array of this shape lives of which each device is to have a part of its own.

    What `spec` has whole on several devices is split among them along the axis that is the largest
    on each, of those that divide (the first of equals). An array with none stays as it is.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> place = lstm_jax.sharding.split_among(mesh, (3, 8 * mesh.size))
        >>> jax.device_put(jnp.ones((3, 8 * mesh.size)), place).addressable_shards[0].data.shape
        (3, 8)
    """
    sizes = NamedSharding(mesh, spec).shard_shape(shape)
    parts = [part or () for part in (*spec, *[None] * (len(shape) - len(spec)))]
    named = [(part,) if isinstance(part, str) else part for part in parts]
    left = tuple(name for name in mesh.axis_names if name not in itertools.chain(*named))
    devices = math.prod(mesh.shape[name] for name in left)
    fitting = [axis for axis, size in enumerate(sizes) if size % devices == 0]
    if fitting:
        axis = max(fitting, key=sizes.__getitem__)
        named[axis] = (*named[axis], *left)
    while named and not named[-1]:  # as jit writes them, and what it gives back must be equal
        named.pop()
    return NamedSharding(mesh, PartitionSpec(*named))


def local(mesh: Mesh, tree: Tree) -> Tree:
    """Whole copies, on this process's first device, of arrays that live on a mesh.

    All processes of the mesh must call it.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> xs = lstm_jax.sharding.put(mesh, np.ones((10, 4, 3)), axis=1)
        >>> lstm_jax.sharding.local(mesh, xs).devices() == {jax.local_devices()[0]}
        True
    """
    if mesh.size == 1:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, rows_at(None)))(tree)
    copies: Tree = jax.tree.map(lambda array: array.addressable_data(0), whole)
    return copies


def axes_of(batch: Any) -> tuple[int | None, ...]:
    """Along which axis of each field of a named tuple the rows lie; None for what all share.

    Its own `batch_axes` say so; without them it is axis 1, as in `[T, B]`.

    Examples:
        >>> from lstm_jax.systems.base import Predictions
        >>> lstm_jax.sharding.axes_of(Predictions(None, None, None))
        (1, 1, 1)
    """
    axes: tuple[int | None, ...] = getattr(batch, "batch_axes", (1,) * len(batch))
    return axes


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Puts a batch, a named tuple, on the mesh, split as `axes_of` says.

    Examples:
        >>> from lstm_jax.systems.base import Predictions
        >>> tokens = np.ones((10, 4), np.int32)
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> batch = lstm_jax.sharding.put_batch(mesh, Predictions(tokens, tokens, None))
    """
    fields: Any = batch
    placed = (put(mesh, *each) for each in zip(fields, axes_of(batch), strict=True))
    return type(batch)(*placed)


def varying(tree: Tree) -> Tree:
    """The same values, as ones that may differ from device to device; inside `shard_map`.

    Examples:
        >>> sharding = lstm_jax.sharding
        >>> mesh, whole = sharding.data_mesh(jax.device_count()), sharding.rows_at(None)
        >>> def gradient(w, xs):  # of this device's rows
        ...     return jax.grad(lambda w: jnp.sum(xs @ w))(sharding.varying(w))[None]
        >>> each = jax.shard_map(gradient, mesh=mesh, in_specs=(whole, sharding.rows_at(0)),
        ...                      out_specs=sharding.rows_at(0))
        >>> each(jnp.ones(3), jnp.ones((4, 3))).shape == (jax.device_count(), 3)
        True
    """
    varies: Tree = jax.tree.map(lambda array: lax.pcast(array, DATA_AXIS, to="varying"), tree)
    return varies


def summed(tree: Tree) -> Tree:
    """Adds up the arrays of all devices, in one all-reduce; inside `shard_map`.

    Examples:
        >>> sharding = lstm_jax.sharding
        >>> mesh, whole = sharding.data_mesh(jax.device_count()), sharding.rows_at(None)
        >>> def gradients(params, xs):  # of the whole batch, the same on each device
        ...     loss = lambda params: jnp.sum(lstm_jax.lstm(params, None, xs)[1] ** 2)
        ...     return sharding.summed(jax.grad(loss)(sharding.varying(params)))
        >>> params = lstm_jax.init_lstm(jax.random.key(0), 3, 4)
        >>> specs = (whole, sharding.rows_at(1))
        >>> step = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=whole)
        >>> jax.jit(step)(params, jnp.ones((10, 4, 3))).w_x.shape
        (3, 16)
    """
    flat, unravel = ravel_pytree(tree)
    total: Tree = unravel(lax.psum(flat, DATA_AXIS))
    return total


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

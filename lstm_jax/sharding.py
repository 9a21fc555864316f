"""The device mesh, the placement of arrays on it, and the collectives.

Each device holds all parameters and its rows of the batch. Inside `jax.shard_map` it computes the
gradient of its rows, with parameters made `varying` so that JAX inserts no sums of its own, and
`summed` adds up the gradients in one all-reduce. An optional second mesh axis, "tensor", splits the
vocabulary among neighbouring devices, each of which still has its own rows.
"""

import itertools
import math
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, TENSOR_AXIS = "data", "tensor"

Tree = TypeVar("Tree")

_WHOLE = PartitionSpec()


def data_mesh(devices: int, batch_size: int = 0, tensor: int = 1) -> Mesh:
    """Make a mesh of `devices` devices: those of all processes, or the first local ones.

    Its axis is "data"; with `tensor` above 1 it has a second axis of that size, "tensor".

    Raises:
        ValueError: `devices` is unavailable, or `tensor` or `batch_size` does not fit it.

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
    sizes = mesh_shape(devices, batch_size, tensor)
    names, kinds = (DATA_AXIS, TENSOR_AXIS)[: len(sizes)], (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=found[:devices])


def mesh_shape(devices: int, batch_size: int, tensor: int) -> tuple[int, ...]:
    """Number of devices along each mesh axis; raises ValueError like `data_mesh`."""
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {devices} devices; choose a batch size "
            "that is a multiple of their number"
        )
    if devices % tensor:
        raise ValueError(
            f"tensor is {tensor}, which does not divide {devices} devices; lower it, or choose "
            "a number of devices that is a multiple of it"
        )
    return (devices,) if tensor == 1 else (devices // tensor, tensor)


def rows_at(axis: int | None, mesh: Mesh | None = None) -> PartitionSpec:
    """Partition spec of an array whose batch rows lie along `axis`; None means unsplit.

    Rows are split among all devices of the mesh; without a mesh, along "data".

    Examples:
        >>> lstm_jax.sharding.rows_at(1) == jax.P(None, "data")  # of xs [T, B, D]
        True
    """
    names = (DATA_AXIS,) if mesh is None else mesh.axis_names
    return _WHOLE if axis is None else PartitionSpec(*[None] * axis, names)


def tensor_axis() -> str | None:
    """Name of the vocabulary's mesh axis inside a `shard_map` that has one, else None.

    Examples:
        >>> lstm_jax.sharding.tensor_axis() is None
        True
    """
    return TENSOR_AXIS if TENSOR_AXIS in _manual_axes() else None


def _manual_axes() -> tuple[str, ...]:
    """Our mesh axes, if inside `shard_map`."""
    names = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in (DATA_AXIS, TENSOR_AXIS) if name in names)


def put(mesh: Mesh, tree: Any, axis: int | None) -> Any:
    """Place every array of the tree on the mesh, split as by `rows_at`.

    Each process passes the whole arrays; its devices take their parts.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> xs = lstm_jax.sharding.put(mesh, np.ones((10, 4, 3)), axis=1)
        >>> xs.sharding.device_set == {*mesh.devices.flat}
        True
    """
    # On one device arrays stay plain: mixed with arrays on a mesh, the step would compile twice.
    if mesh.size == 1:
        return jax.tree.map(jnp.asarray, tree)
    return put_at(NamedSharding(mesh, rows_at(axis, mesh)), tree)


def put_at(places: Any, tree: Tree) -> Tree:
    """Like `put`, with a tree, or prefix tree, of shardings.

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
        # Not `device_put`, which makes all processes compare their values.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, array.__getitem__)

    return jax.tree.map(placed, jax.tree.broadcast(places, tree), tree)


def split_among(mesh: Mesh, shape: tuple[int, ...], spec: PartitionSpec = _WHOLE) -> NamedSharding:
    """Sharding that gives each device its own part of an array of this shape.

    Where `spec` replicates over several devices, split the largest local axis that they divide (the
    first, if tied). If none divides, the array stays as it is.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> place = lstm_jax.sharding.split_among(mesh, (3, 8 * mesh.size))
        >>> jax.device_put(jnp.ones((3, 8 * mesh.size)), place).addressable_shards[0].data.shape
        (3, 8)
    """
    sizes = NamedSharding(mesh, spec).shard_shape(shape)
    named = _names(spec, shape)
    left = tuple(name for name in mesh.axis_names if name not in itertools.chain(*named))
    devices = math.prod(mesh.shape[name] for name in left)
    fitting = [axis for axis, size in enumerate(sizes) if size % devices == 0]
    if fitting:
        axis = max(fitting, key=sizes.__getitem__)
        named[axis] = (*named[axis], *left)
    while named and not named[-1]:  # jit's results are written so, and must compare equal
        named.pop()
    return NamedSharding(mesh, PartitionSpec(*named))


def local(mesh: Mesh, tree: Tree) -> Tree:
    """Whole copies on this process's first device; all processes must call it."""
    if mesh.size == 1:
        return tree
    whole = jax.device_put(tree, NamedSharding(mesh, _WHOLE))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def _names(spec: PartitionSpec, shape: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Mesh axes that split each axis of an array of this shape."""
    parts = [part or () for part in (*spec, *[None] * (len(shape) - len(spec)))]
    return [(part,) if isinstance(part, str) else part for part in parts]


def axes_of(batch: Any) -> tuple[int | None, ...]:
    """The batch axis of each field of a named tuple, or None for fields that all rows share.

    The tuple's `batch_axes` give them; without these, it is axis 1, as in `[T, B]`.

    Examples:
        >>> from lstm_jax.systems.base import Predictions
        >>> lstm_jax.sharding.axes_of(Predictions(None, None, None))
        (1, 1, 1)
    """
    return getattr(batch, "batch_axes", (1,) * len(batch))


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Place a batch, which is a named tuple, on the mesh, split as by `axes_of`.

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
    """Mark values as possibly different on each device; for use inside `shard_map`.

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
    return jax.tree.map(partial(_vary, _manual_axes()), tree)


def summed(tree: Tree, specs: Any = _WHOLE) -> Tree:
    """Sum the arrays of all devices in one all-reduce; inside `shard_map`.

    `specs` is a tree or prefix tree; an array is not summed along the mesh axes of its spec, and
    such arrays take a second all-reduce.

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
    leaves, treedef = jax.tree.flatten(tree)
    kept = jax.tree.leaves(jax.tree.broadcast(specs, tree))
    over = [tuple(name for name in _manual_axes() if name not in spec) for spec in kept]
    for axes in sorted({*over}):
        places = [place for place, each in enumerate(over) if each == axes]
        flat, unravel = ravel_pytree([leaves[place] for place in places])
        for place, total in zip(places, unravel(lax.psum(flat, axes)), strict=True):
            leaves[place] = total
    return jax.tree.unflatten(treedef, leaves)


def padded_shape(
    mesh: Mesh | AbstractMesh, spec: PartitionSpec, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape with each axis that `spec` splits rounded up to a multiple of the devices."""
    parts = [math.prod(map(mesh.shape.__getitem__, names)) for names in _names(spec, shape)]
    return tuple(size + -size % number for size, number in zip(shape, parts, strict=True))


def padded(mesh: Mesh, specs: Any, tree: Tree) -> Tree:
    """Zero-pad arrays so that their specs divide them; for trees of specs see `summed`.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> xs = lstm_jax.sharding.padded(mesh, jax.P("data"), jnp.ones((1, 3)))
        >>> xs.shape == (mesh.size, 3)
        True
    """

    def pad(spec: PartitionSpec, array: Array) -> Array:
        shape = padded_shape(mesh, spec, array.shape)
        widths = [(0, new - old) for new, old in zip(shape, array.shape, strict=True)]
        if shape == array.shape:
            return array
        # XLA would reshard any other array by way of the whole one, with a warning.
        return jnp.pad(lax.with_sharding_constraint(array, NamedSharding(mesh, _WHOLE)), widths)

    return jax.tree.map(pad, jax.tree.broadcast(specs, tree), tree)


def vary_as(xs: Any, tree: Any) -> Any:
    """Give arrays the device-varying type of `xs`, which loops in `shard_map` require.

    Outside the loop JAX transposes this to a sum over devices for a replicated weight's gradient.
    """
    axes = frozenset().union(*map(_varies_over, jax.tree.leaves(xs)))
    return jax.tree.map(partial(_vary, axes), tree)


def _varies_over(array: Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _vary(axes: Iterable[str], array: Array) -> Array:
    missing = tuple(sorted({*axes} - _varies_over(array)))
    return lax.pcast(array, missing, to="varying") if missing else array

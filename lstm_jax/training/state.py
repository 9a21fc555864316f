"""The training state and the jitted training step."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax, random
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_jax import sharding
from lstm_jax.dropout import keys_of_rows, weight_drop
from lstm_jax.losses import TokenSums
from lstm_jax.systems.base import BatchSums, Objective, ShardState
from lstm_jax.training.log import MetricSums, total

_WHOLE = sharding.rows_at(None)


@struct.dataclass
class TrainState:
    """Everything that a run carries from step to step, and that a checkpoint contains."""

    step: Array  # int32, steps taken
    params: Any
    opt_state: Any
    carry: Any  # the carry between batches
    key: Array  # typed, of the run; each step folds its number in
    batch: Array  # int32, index of the next batch in its epoch
    skipped: Array  # int32, number of steps skipped for a non-finite loss or gradient


class StepMetrics(NamedTuple):
    """Results of a step: sums of its batch, mean loss, gradient norm before clipping."""

    sums: BatchSums
    loss: Array
    grad_norm: Array
    stopping: Array | None  # number of devices whose process is to stop; None for a single process


class Program(NamedTuple):
    """What a training step is compiled for."""

    objective: Objective
    optimizer: optax.GradientTransformation
    batches: int  # batches per epoch
    batch_size: int
    mesh: Mesh
    frozen: tuple[str, ...] = ()  # fields of the parameters that are not trained
    shard_state: ShardState = "none"
    weight_drop: float = 0.0


@partial(jax.jit, static_argnums=0)
def init_state(program: Program, seed: Array) -> TrainState:
    """The initial state."""
    key_params, key = random.split(random.key(seed))
    params = program.objective.init(key_params)
    zero = partial(jnp.zeros, (), jnp.int32)
    state = TrainState(
        step=zero(),
        params=params,
        opt_state=program.optimizer.init(params),
        carry=program.objective.zero_carry(params, program.batch_size),
        key=key,
        batch=zero(),
        skipped=zero(),
    )
    return _placed(program, state)


def places_of(program: Program, state: TrainState) -> TrainState | None:
    """Sharding of each part of the state, or None on one device, where JAX decides.

    Only the shapes of the state are used.
    """
    mesh = program.mesh
    if mesh.size == 1:
        return None
    whole: Any = NamedSharding(mesh, _WHOLE)
    rows: Any = NamedSharding(mesh, sharding.rows_at(0, mesh))
    of_params = _specs_of_params(program.objective, mesh)
    specs = jax.tree.broadcast(of_params, state.params)
    moments = jax.tree.map(lambda _: _WHOLE, state.opt_state)
    if of_params != _WHOLE:
        moments = optax.tree_map_params(
            program.optimizer, lambda _, spec: spec, state.opt_state, specs,
            transform_non_params=lambda _: _WHOLE,
        )  # fmt: skip

    def places_in(specs: Any, tree: Any, *splits: ShardState) -> Any:
        split = program.shard_state in splits
        return jax.tree.map(lambda spec, leaf: place_of(mesh, spec, leaf.shape, split), specs, tree)

    params = places_in(specs, state.params, "all")
    moments = places_in(moments, state.opt_state, "all", "moments")
    return TrainState(whole, params, moments, rows, whole, whole, whole)


def place_of(mesh: Any, spec: PartitionSpec, shape: tuple[int, ...], split: bool) -> NamedSharding:
    """Sharding of an array of the state, which is whole if its spec does not divide it."""
    if sharding.padded_shape(mesh, spec, shape) != shape:
        spec = _WHOLE
    return sharding.split_among(mesh, shape, spec) if split else NamedSharding(mesh, spec)


def _specs_of_params(objective: Objective, mesh: Mesh | None) -> Any:
    """Partition specs of the parameters: split by vocabulary if the mesh has an axis for that."""
    if mesh is None or sharding.TENSOR_AXIS not in mesh.axis_names:
        return _WHOLE
    return objective.vocabulary_specs(sharding.TENSOR_AXIS)  # type: ignore[attr-defined]


def bytes_a_device(program: Program) -> int:
    """Bytes of parameters and optimizer state on each device."""
    state = jax.eval_shape(partial(init_state, program), jax.ShapeDtypeStruct((), jnp.uint32))
    whole: Any = NamedSharding(program.mesh, _WHOLE)
    places = places_of(program, state) or jax.tree.broadcast(whole, state)

    def size(place: NamedSharding, leaf: Any) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * int(leaf.dtype.itemsize)

    held = (places.params, places.opt_state), (state.params, state.opt_state)
    return sum(jax.tree.leaves(jax.tree.map(size, *held)))


def _placed(program: Program, state: TrainState) -> TrainState:
    """The state with each part in its place."""
    places = places_of(program, state)
    return state if places is None else lax.with_sharding_constraint(state, places)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    program: Program, state: TrainState, data: Any, stopping: Array | None = None
) -> tuple[TrainState, StepMetrics]:
    """Run one training step: forward, backward, clipping, optimizer.

    The state is donated. `stopping`, float32 `[devices]`, is 1 where the process is asked to stop.
    """
    starts = state.batch == 0
    before = jax.tree.map(lambda c: jnp.where(starts, jnp.zeros_like(c), c), state.carry)
    mesh, rows = program.mesh, sharding.rows_at(0, program.mesh)
    specs = _specs_of_params(program.objective, mesh)
    ins = (specs, rows, _specs(data, mesh), _WHOLE, _WHOLE, rows)
    gradients_of = _shared(mesh, partial(_gradients, program), ins, (specs, _WHOLE, _WHOLE, rows))
    key = random.fold_in(state.key, state.step)
    given = sharding.padded(mesh, specs, state.params), before, data, state.batch, key, stopping
    gradients, sums, stopping, carry = gradients_of(*given)
    gradients = jax.tree.map(
        lambda g, p: g if g.shape == p.shape else g[tuple(map(slice, p.shape))],
        gradients, state.params,
    )  # fmt: skip
    loss = mean_loss(sums)
    grad_norm = optax.tree.norm(gradients)
    updates, opt_state = program.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=if_finite(params, state.params),
        opt_state=if_finite(opt_state, state.opt_state),
        carry=if_finite(carry, before),
        batch=(state.batch + 1) % program.batches,
        skipped=state.skipped + ~finite,
    )
    loss, grad_norm = loss.astype(jnp.float32), grad_norm.astype(jnp.float32)
    return _placed(program, state), StepMetrics(sums, loss, grad_norm, stopping)


def _gradients(
    program: Program, params: Any, carry: Any, data: Any, index: Array, key: Array,
    stopping: Array | None,
) -> tuple[Any, BatchSums, Array | None, Any]:  # fmt: skip
    """Gradients of the batch's mean loss, its sums, sum of `stopping`, and the carry of own rows.

    Random draws for a row depend only on the key and the row's index in the batch, those for
    weights on the key. Only gradients and sums are exchanged between devices, in one go.
    """
    devices = program.mesh.size
    rows = program.batch_size // devices
    first = lax.axis_index(program.mesh.axis_names) * rows if devices > 1 else 0
    keys = keys_of_rows(key, first, rows)

    def loss_of(params: Any) -> tuple[Array, tuple[BatchSums, Any]]:
        if program.weight_drop:
            params = weight_drop(
                random.fold_in(key, program.batch_size), params, program.weight_drop
            )
        sums, after = program.objective.sums(params, carry, data, index, keys)
        return mean_loss(sums), (sums, after)

    zeros = {name: jnp.zeros_like(getattr(params, name)) for name in program.frozen}
    if devices > 1:
        params = sharding.varying(params)
    gradients, (sums, after) = jax.grad(loss_of, has_aux=True)(params)
    if devices == 1:
        return gradients, sums, stopping, after
    if zeros:
        gradients = gradients._replace(**dict.fromkeys(zeros))
    weight = _total(sums).weight
    if stopping is not None:
        stopping = stopping[0]
    gradients, sums, stopping = sharding.summed(
        (jax.tree.map(lambda g: g * weight, gradients), _first_of_group(sums), stopping),
        (_specs_of_params(program.objective, program.mesh), _WHOLE, _WHOLE),
    )
    weight = _total(sums).weight
    gradients = jax.tree.map(lambda g: g / weight, gradients)
    return gradients._replace(**zeros) if zeros else gradients, sums, stopping, after


def _first_of_group(sums: BatchSums) -> BatchSums:
    """Keep sums that all devices along the vocabulary axis share on the first one only."""
    axis = sharding.tensor_axis()
    if axis is None:
        return sums
    is_first = lax.axis_index(axis) == 0
    return jax.tree.map(lambda a: jnp.where(is_first, a, 0), sums)


def _total(sums: BatchSums) -> TokenSums:
    return jax.tree.map(lambda *each: sum(each), *sums.parts.values())


def mean_loss(sums: BatchSums) -> Array:
    """Mean loss in nats per token; 0 on a device that only has padding rows."""
    total = _total(sums)
    return total.loss / jnp.where(total.weight > 0, total.weight, 1)


def _shared(mesh: Mesh | None, run: Callable[..., Any], specs: Any, outs: Any) -> Any:
    """Map a function over the mesh; on one device, the function itself."""
    if mesh is None or mesh.size == 1:
        return run
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=outs)


def _specs(batch: Any, mesh: Mesh | None) -> Any:
    return type(batch)(*(sharding.rows_at(axis, mesh) for axis in sharding.axes_of(batch)))


def evaluate(
    objective: Objective,
    params: Any,
    batches: Iterable[Any],
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> dict[str, MetricSums]:
    """Sum each part over held-out batches, starting from a zero carry, without dropout.

    If `should_stop`, asked before each batch, returns True, the result is empty, as it is without
    batches. A mesh's devices share each batch if they divide it.
    """
    if mesh is not None and (mesh.size == 1 or batch_size % mesh.size):
        params, mesh = sharding.local(mesh, params), None
    carry = objective.zero_carry(params, batch_size)
    found: list[dict[str, TokenSums]] = []
    for data in batches:
        if should_stop():
            return {}
        sums, carry = _evaluate_batch(objective, mesh, params, carry, data)
        found.append(sums.parts)
        jax.block_until_ready(found[-2:-1])  # keeps the queue short, so that it can be stopped
    found = jax.device_get(found)
    names = found[0] if found else ()
    return {name: total(map(float, sums[name]) for sums in found) for name in names}


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate_batch(
    objective: Objective, mesh: Mesh | None, params: Any, carry: Any, data: Any
) -> tuple[BatchSums, Any]:
    def of_rows(params: Any, carry: Any, data: Any) -> tuple[BatchSums, Any]:
        sums, after = objective.sums(params, carry, data, jnp.int32(0), None)
        return sums if mesh is None else sharding.summed(_first_of_group(sums)), after

    specs, rows = _specs_of_params(objective, mesh), sharding.rows_at(0, mesh)
    if mesh is not None:
        params = sharding.padded(mesh, specs, params)
    shared = _shared(mesh, of_rows, (specs, rows, _specs(data, mesh)), (_WHOLE, rows))
    return shared(params, carry, data)

"""What a model takes on a mesh: parameters, memory, traffic and time, from its settings alone.

Nothing is computed. Parameters, the optimizer's state and what is kept for the backward pass are
those of the system's own model, traced with shapes. Every exchange is a ring's: to add up b bytes
each of n devices sends 2 b (n - 1) / n, to gather or scatter them half as many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from lstm_jax.classifier import Classifier
from lstm_jax.cli.console import json_line
from lstm_jax.cli.plan_options import PlanCommand, PlanOptions
from lstm_jax.losses import chunk_times
from lstm_jax.stack import Directions
from lstm_jax.systems import system_of
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer

_NUMBER = 4
"""Bytes of a float32, or of a token's id."""


@dataclass(frozen=True)
class Mesh:
    """Devices along a data axis and a tensor axis; parts of the vocabulary lie along the latter.

    Attributes:
        devices: in all.
        tensor: how many of them share the vocabulary's arrays.
        tokens: V, of the vocabulary.
    """

    devices: int
    tensor: int
    tokens: int

    @property
    def data(self) -> int:
        """Devices along the data axis."""
        return self.devices // self.tensor

    def held(self, tree: Any, *, is_split: bool = False, of_vocabulary: bool | None = None) -> int:
        """Bytes of a tree's arrays on each device.

        Args:
            tree: parameters, or what an optimizer keeps of them.
            is_split: whether devices with the same part of an array share it further.
            of_vocabulary: count only the vocabulary's arrays, or only the others; None for both.
        """
        held = 0
        for path, leaf in jax.tree.leaves_with_path(tree):
            is_part = any(getattr(key, "name", "") in ("embedding", "output") for key in path)
            if of_vocabulary not in (None, is_part):
                continue
            shape, devices = list(leaf.shape), self.devices
            if is_part and self.tokens in shape:
                shape[shape.index(self.tokens)] = -(-self.tokens // self.tensor)
                devices = self.data
            is_shared = is_split and any(size % devices == 0 for size in shape)
            held += math.prod(shape) * leaf.dtype.itemsize // (devices if is_shared else 1)
        return held


@dataclass(frozen=True)
class Exchange:
    """Bytes that each device sends in a step, and the milliseconds that they take."""

    sent: int
    ms: float


@dataclass(frozen=True)
class Plan:
    """What a model takes; of each kind "total" is the sum.

    Attributes:
        mesh: the devices.
        rows: of the batch, on each device.
        times: tokens of a row.
        parameters: how many numbers are learnt, by part.
        memory: bytes on each device, by what they hold.
        traffic: what each device sends in a step.
        work: operations of each device in a step.
        work_ms: the milliseconds that they take.
    """

    mesh: Mesh
    rows: int
    times: int
    parameters: dict[str, int]
    memory: dict[str, int]
    traffic: dict[str, Exchange]
    work: int
    work_ms: float


def run(command: PlanCommand[Any, Any]) -> int:
    """Prints the plan; raises ValueError for what the user can mend."""
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be another process's
    found = plan(command)
    print(json_line(dataclasses.asdict(found)) if command.json else "\n".join(_lines(found)))
    return 0


def plan(command: PlanCommand[Any, Any]) -> Plan:
    """What the command's model takes on its mesh.

    Raises:
        ValueError: the mesh can't be, with the cure.
    """
    config = command.config
    model = system_of(config).model_of(config, command.tokens)
    mesh = _mesh(command, is_classifier=isinstance(model, Classifier))
    rows = config.batch_size // mesh.devices
    times = getattr(config, "sequence_length", None) or config.length
    params = jax.eval_shape(lambda: model.init(random.key(0)))
    learnt, vectors = params, getattr(params, "vectors", None)
    if vectors is not None:
        learnt = params._replace(vectors=None)
    optimizer = make_optimizer(config.optimizer, learning_rate_schedule(config.optimizer, 1))
    moments = jax.eval_shape(optimizer.init, learnt)
    splits_all, splits_moments = config.shard_state == "all", config.shard_state != "none"
    whole = mesh.held(learnt)
    summed = mesh.held(learnt, of_vocabulary=None if mesh.data > 1 else False)
    memory = {
        "parameters": mesh.held(learnt, is_split=splits_all),
        "gradients": whole,
        # Where parameters are gathered, those are gone once the gradients are known.
        "gradients, flat to be summed": summed if mesh.devices > 1 else 0,
        "Adam's moments": mesh.held(moments, is_split=splits_moments),
        "frozen vectors": mesh.held(vectors),
        "kept for the backward pass": _kept(model, params, rows, times),
        **_loss_memory(mesh, model, rows, times),
    }
    parameters = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in learnt._asdict().items()
    }
    traffic = {
        name: Exchange(round(sent), sent / (1e6 * speed))
        for name, sent, speed in _traffic(command, mesh, model, learnt, rows * times)
        if sent
    }
    sums = (sum(getattr(each, name) for each in traffic.values()) for name in ("sent", "ms"))
    traffic["total"] = Exchange(*sums)
    work = 6 * rows * times * _multiplied(model, params)
    ms = work / (1e9 * command.own.device_tflops)
    return Plan(mesh, rows, times, _totalled(parameters), _totalled(memory), traffic, work, ms)


def _mesh(command: PlanCommand[Any, Any], *, is_classifier: bool) -> Mesh:
    batch_size, devices = command.config.batch_size, command.config.device_count
    tensor, tokens = command.own.tensor, command.tokens
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} does not divide among {devices} devices; choose a batch size "
            "that is a multiple of their number"
        )
    if tensor > 1 and is_classifier:
        raise ValueError(f"tensor is {tensor}, but a classifier has one logit; leave tensor at 1")
    if devices % tensor:
        raise ValueError(f"tensor is {tensor}, which does not divide {devices} devices; lower it")
    if tensor > tokens:
        raise ValueError(f"tensor is {tensor}, but there are {tokens} tokens; lower it")
    return Mesh(devices, tensor, tokens)


def _kept(model: Any, params: Any, rows: int, times: int) -> int:
    """Bytes that the forward pass leaves for the backward pass, without inputs and parameters.

    Arrays in the shape of a parameter are no activations: weights in another dtype, and the output
    layer's gradient, which the loss forms in its forward pass.
    """

    def left(params: Any, tokens: Array, mask: Array, keys: Array) -> list[Array]:
        def loss(params: Any) -> Array:
            if isinstance(model, Classifier):
                sums = model.sums(params, tokens, tokens[0], mask=mask, dropout_key=keys)
            else:
                sums, _ = model.token_sums(params, None, tokens, tokens, dropout_key=keys)
            return sums.loss

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    shape = (times, rows)
    tokens, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
    keys = jax.eval_shape(lambda: random.split(random.key(0), rows))
    program = jax.make_jaxpr(left)(params, tokens, mask, keys).jaxpr
    inputs, shapes = set(program.invars), {leaf.shape for leaf in jax.tree.leaves(params)}
    outputs = (each for each in dict.fromkeys(program.outvars) if each not in inputs)
    arrays = (each.aval for each in outputs if each.aval.shape not in shapes)
    return sum(array.size * array.dtype.itemsize for array in arrays)


def _loss_memory(mesh: Mesh, model: Any, rows: int, times: int) -> dict[str, int]:
    """Of a group's rows: a chunk of logits with its gradients, and all states for the tensor axis.

    A device has its part of the vocabulary, and all rows of the devices that it shares it with.
    """
    if isinstance(model, Classifier):
        return {}
    group, tokens = rows * mesh.tensor, -(-mesh.tokens // mesh.tensor)
    logits = chunk_times(times, group, tokens) * group * tokens
    size = model.config.output_size
    states = times * group * size if mesh.tensor > 1 else 0
    return {
        "hidden states of the group, their gradient": 2 * _NUMBER * states,
        "logits of a chunk, their gradient": 2 * _NUMBER * logits,
        "output layer's gradient by a chunk": _NUMBER * size * tokens,
    }


def _traffic(
    command: PlanCommand[Any, Any], mesh: Mesh, model: Any, learnt: Any, places: int
) -> Iterator[tuple[str, float, float]]:
    """Each exchange of a step: its name, the bytes that a device sends, 10^9 of them a second.

    Neighbours share a tensor axis, so it stays inside a node where it divides the node's devices.
    """
    own: PlanOptions = command.own
    link, network = own.link_gigabytes, own.network_gigabytes
    in_node = mesh.devices <= own.node_devices
    speed = link if in_node else network
    for of_vocabulary, devices in ((False, mesh.devices), (True, mesh.data)):
        name = "vocabulary" if of_vocabulary else "layers"
        whole = mesh.held(learnt, of_vocabulary=of_vocabulary)
        yield f"gradients of the {name}, summed", 2 * whole * (1 - 1 / devices), speed
        if command.config.shard_state != "none":
            part = mesh.held(learnt, is_split=True, of_vocabulary=of_vocabulary)
            yield f"parameters of the {name}, gathered", whole - part, speed
    if mesh.tensor > 1:
        speed = link if in_node or own.node_devices % mesh.tensor == 0 else network
        sent = _NUMBER * places * (mesh.tensor - 1)
        config = model.config
        yield "hidden states, their gradients", 2 * sent * config.output_size, speed
        yield "look-ups, their gradients", 2 * sent * (config.embedding_size or 0), speed
        # Ids of inputs and targets are gathered; maxima, sums, targets' logits are added up.
        yield "ids, sums of exponentials", (2 + 3 * 2) * sent, speed


def _multiplied(model: Any, params: Any) -> int:
    """Numbers of the matrices that every token is multiplied with, and not looked up in."""
    matrices: int = sum(leaf.size for leaf in jax.tree.leaves(params.layers) if leaf.ndim == 2)
    if isinstance(model, Classifier):
        return matrices
    if params.embedding is None:
        first = params.layers[0]
        each = first if isinstance(first, Directions) else (first,)
        matrices -= sum(direction.w_x.size for direction in each)
    output = params.embedding if model.config.tied else params.output.w
    return matrices + int(output.size)


def _totalled(numbers: dict[str, int]) -> dict[str, int]:
    found = {name: number for name, number in numbers.items() if number}
    return found | {"total": sum(numbers.values())}


def _lines(found: Plan) -> Iterator[str]:
    mesh = found.mesh
    yield (
        f"{mesh.data} x {mesh.tensor} devices (data x tensor), on each {found.rows} rows of "
        f"{found.times} tokens"
    )
    yield "\nparameters"
    for name, number in found.parameters.items():
        yield f"  {name:44}{number:>16,}"
    yield "\nmemory of a device"
    for name, number in found.memory.items():
        yield f"  {name:44}{_size(number):>16}"
    yield "\nsent by a device in a step"
    for name, each in found.traffic.items():
        yield f"  {name:44}{_size(each.sent):>16}{each.ms:>12.3g} ms"
    yield "\nwork of a device in a step"
    operations = f"{found.work / 1e12:,.3g} x 10^12"
    yield f"  {'multiplications and additions':44}{operations:>16}{found.work_ms:>12.3g} ms"


def _size(number: int) -> str:
    """Bytes, with three digits."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number} B"

"""The `plan` command: a model's parameters, memory, traffic and time on a mesh, from its settings.

Nothing is computed: parameters, optimizer state and saved activations are those of the system's own
model, traced with shapes. All collectives are rings: to sum b bytes, each of n devices sends
2 b (n - 1) / n; to gather or scatter them, half of that.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import tyro
from jax import Array, random
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from rich.filesize import decimal

from lstm_jax.classifier import Classifier
from lstm_jax.cli.arguments import parse
from lstm_jax.cli.console import json_line
from lstm_jax.cli.train_options import named_preset
from lstm_jax.losses import chunk_times
from lstm_jax.settings import Checked, Count, Positive
from lstm_jax.sharding import DATA_AXIS, TENSOR_AXIS, mesh_shape, padded_shape
from lstm_jax.stack import Directions
from lstm_jax.systems import system_of
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.reviews import ReviewsConfig
from lstm_jax.training.state import place_of

HELP = """\
usage: {prog} [PRESET] --vocabulary-size N [--FLAG VALUE] ...

Estimates a model's parameters, memory, traffic and time on a mesh of devices, without reading data
or using an accelerator. It also takes train's flags for the preset's settings, and --as-published.

common flags:
  --vocabulary-size N     number of tokens in the vocabulary
  --devices N             number of devices that share each batch
  --tensor N              number of them that split the vocabulary, and each row's logits
  --shard-state S         other state to split: none, moments (Adam's), or all (parameters too)
  --batch-size N          number of sequences per batch, on all devices together
  --sequence-length N     tokens per sequence
  --layers N              number of stacked layers
  --hidden-size N         units of each layer
  --embedding-size N      size of a token's embedding
  --projection-size N     size of an LSTM's projected hidden states
  --device-tflops X       speed of a device in 10^12 operations per second; by default 400
  --link-gigabytes X      10^9 bytes per second that it sends within its node; by default 400
  --network-gigabytes X   10^9 bytes per second that it sends to other nodes; by default 50
  --node-devices N        number of devices per node; by default 8
  --json                  print a JSON object

{prog} PRESET --help-all prints all flags with the preset's values."""

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class PlanOptions(Checked):
    """Speed of a mesh."""

    device_tflops: Positive = 400.0  # 10^12 multiplications and additions per second of a device.
    link_gigabytes: Positive = 400.0  # 10^9 bytes per second that a device sends within its node.
    network_gigabytes: Positive = 50.0  # 10^9 bytes per second that a device sends to other nodes.
    node_devices: Count = 8  # number of devices per node.


@dataclass(frozen=True)
class TextPlanOptions(PlanOptions):
    """Options for a language model, whose tokens training would count."""

    vocabulary_size: Count | None = None  # number of tokens in the vocabulary; required.


Own = TypeVar("Own", bound=PlanOptions)


@dataclass(frozen=True)
class PlanCommand(Generic[C, Own]):
    """Estimate a model's parameters, memory, traffic and time on a mesh of devices."""

    config: Annotated[C, tyro.conf.arg(name="")]  # the run's settings, as for train.
    own: Annotated[Own, tyro.conf.arg(name="")]  # settings of this command only.
    #: docs (the default), anna, shakespeare, wordlm, poems, reviews or lyrics.
    preset: Annotated[str, tyro.conf.Positional] = "docs"
    as_published: bool = False  # take the published system that the preset follows.
    json: bool = False  # print a JSON object: bytes, operations, milliseconds.

    @property
    def tokens(self) -> int:
        """Number of tokens in the vocabulary; a classifier has its own setting for it."""
        settings = self.own if isinstance(self.own, TextPlanOptions) else self.config
        tokens: int | None = settings.vocabulary_size  # type: ignore[union-attr]
        if tokens is None:
            raise ValueError(
                "the number of tokens is unknown, as no data is read; give --vocabulary-size N"
            )
        return tokens


def read_arguments(arguments: Sequence[str], prog: str) -> PlanCommand[Any, Any]:
    """Parse the flags over the defaults of the preset that the first word names."""
    _, default = named_preset(arguments)
    own = PlanOptions() if isinstance(default, ReviewsConfig) else TextPlanOptions()
    kind: Any = PlanCommand[type(default), type(own)]  # type: ignore[misc]
    return parse(kind, PlanCommand(default, own, default.preset), arguments, prog, HELP)


_OF_VOCABULARY = frozenset(["embedding", "output"])
_NUMBER = 4  # bytes of a float32 or a token id


class Held(NamedTuple):
    """Bytes on each device that belong to one trained array."""

    of_vocabulary: bool  # belongs to the embedding or output layer
    state: int  # the array itself, between steps
    moment: int  # each of Adam's two moments
    gradient: int  # as the step computes it
    devices: int  # number of devices that sum their gradients


@dataclass(frozen=True)
class Exchange:
    """Bytes that each device sends per step, and the milliseconds they take."""

    sent: int
    ms: float


@dataclass(frozen=True)
class Plan:
    """Resources that a model needs; in each dict "total" is the sum."""

    mesh: dict[str, int]  # number of devices along each axis
    rows: int  # rows of the batch on each device
    times: int  # tokens per row
    parameters: dict[str, int]  # number of trained parameters, by part
    memory: dict[str, int]  # bytes on each device, by content
    traffic: dict[str, Exchange]  # what each device sends per step
    work: int  # operations of each device per step
    work_ms: float


def run(command: PlanCommand[Any, Any]) -> int:
    """Print the plan; raises ValueError for user errors."""
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be in use elsewhere
    found = plan(command)
    print(json_line(dataclasses.asdict(found)) if command.json else "\n".join(_lines(found)))
    return 0


def plan(command: PlanCommand[Any, Any]) -> Plan:
    """Compute the plan of a command; raises ValueError if it is impossible."""
    config, optimizer = command.config, command.config.optimizer
    if config.model.backend == "cudnn":
        # Only an NVIDIA GPU tells what cuDNN keeps for the backward pass; ours stands for it.
        layers = dataclasses.replace(config.model, backend="auto")
        config = dataclasses.replace(config, model=layers)
    model = system_of(config).model_of(config, command.tokens)
    mesh = _mesh(command, is_classifier=isinstance(model, Classifier))
    rows = config.batch_size // mesh.size
    times = getattr(config, "sequence_length", None) or config.length
    params = jax.eval_shape(lambda: model.init(random.key(0)))
    vectors = getattr(params, "vectors", None)
    learnt = params if vectors is None else params._replace(vectors=None)
    held = [*_held(config, model, learnt, mesh)]
    memory = {
        "parameters": sum(each.state for each in held),
        "gradients": sum(max(each.gradient, each.moment) for each in held),
        # Gathered parameters are freed once the gradients are known.
        "gradients, flat to be summed": sum(each.gradient for each in held if each.devices > 1),
        "Adam's moments": sum(2 * each.moment for each in held if optimizer.method == "adam"),
        "averaged weights": sum(each.moment for each in held if optimizer.average_after),
        "frozen vectors": 0 if vectors is None else vectors.size * vectors.dtype.itemsize,
        "kept for the backward pass": _kept(model, params, rows, times),
        **_loss_memory(command.tokens, mesh, model, rows, times),
    }
    parameters = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in learnt._asdict().items()
    }
    traffic = {
        name: Exchange(round(sent), sent / (1e6 * speed))
        for name, sent, speed in _traffic(command, mesh, model, held, rows * times)
        if sent
    }
    sums = (sum(getattr(each, name) for each in traffic.values()) for name in ("sent", "ms"))
    traffic["total"] = Exchange(*sums)
    work = 6 * rows * times * _matrix_entries(model, params)
    ms = work / (1e9 * command.own.device_tflops)
    return Plan(
        dict(mesh.shape), rows, times, _totalled(parameters), _totalled(memory), traffic, work, ms
    )


def _mesh(command: PlanCommand[Any, Any], *, is_classifier: bool) -> AbstractMesh:
    batch_size, devices = command.config.batch_size, command.config.device_count
    tensor, tokens = command.config.tensor, command.tokens
    data, *_ = mesh_shape(devices, batch_size, tensor)
    if tensor > 1 and is_classifier:
        raise ValueError(f"tensor is {tensor}, but a classifier has one logit; leave tensor at 1")
    if tensor > tokens:
        raise ValueError(f"tensor is {tensor}, but there are {tokens} tokens; lower it")
    return AbstractMesh((data, tensor), (DATA_AXIS, TENSOR_AXIS))


def _held(config: Any, model: Any, learnt: Any, mesh: AbstractMesh) -> Iterator[Held]:
    """Yield the bytes of each trained array, placed as in the training state."""
    data, tensor = mesh.shape.values()
    specs = model.vocabulary_specs(TENSOR_AXIS) if tensor > 1 else PartitionSpec()
    specs = jax.tree.leaves(jax.tree.broadcast(specs, learnt))
    for (path, leaf), spec in zip(jax.tree.leaves_with_path(learnt), specs, strict=True):
        state = place_of(mesh, spec, leaf.shape, config.shard_state == "all")
        moment = place_of(mesh, spec, leaf.shape, config.shard_state != "none")
        padded = padded_shape(mesh, spec, leaf.shape)
        yield Held(
            of_vocabulary=any(getattr(key, "name", "") in _OF_VOCABULARY for key in path),
            state=_bytes(state, leaf.shape),
            moment=_bytes(moment, leaf.shape),
            gradient=_bytes(NamedSharding(mesh, spec), padded),
            devices=data if TENSOR_AXIS in spec else mesh.size,
        )


def _bytes(place: NamedSharding, shape: tuple[int, ...]) -> int:
    return _NUMBER * math.prod(place.shard_shape(shape))


def _kept(model: Any, params: Any, rows: int, times: int) -> int:
    """Bytes of activations saved for the backward pass, without inputs and parameters.

    Arrays with the shape of a parameter do not count: weights in another dtype, and the output
    layer's gradient, which the loss computes in its forward pass.
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
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    computed = {each for each in program.outvars if not isinstance(each, Literal)}
    arrays = (each.aval for each in computed - {*program.invars} if each.aval.shape not in shapes)
    return sum(array.size * array.dtype.itemsize for array in arrays)


def _loss_memory(
    vocabulary: int, mesh: AbstractMesh, model: Any, rows: int, times: int
) -> dict[str, int]:
    """Memory of a chunk of logits with gradients, and of all states with a tensor axis.

    A device has its part of the vocabulary, and the rows of all devices that share the vocabulary.
    """
    if isinstance(model, Classifier):
        return {}
    tensor = mesh.shape[TENSOR_AXIS]
    group, tokens = rows * tensor, -(-vocabulary // tensor)
    logits = chunk_times(times, group, tokens, "gpu") * group * tokens
    size = model.config.output_size
    states = times * group * size if tensor > 1 else 0
    return {
        "hidden states of the group, their gradient": 2 * _NUMBER * states,
        "logits of a chunk, their gradient": 2 * _NUMBER * logits,
        "output layer's gradient by a chunk": _NUMBER * size * tokens,
    }


def _traffic(
    command: PlanCommand[Any, Any], mesh: AbstractMesh, model: Any, held: list[Held], places: int
) -> Iterator[tuple[str, float, float]]:
    """Yield each collective of a step: name, bytes sent per device, speed in 10^9 bytes per second.

    Neighbours share a tensor axis, so it stays within a node if it divides the node's devices.
    """
    own, config = command.own, model.config
    tensor = mesh.shape[TENSOR_AXIS]
    in_node = mesh.size <= own.node_devices
    across = own.link_gigabytes if in_node else own.network_gigabytes
    beside = across if own.node_devices % tensor else own.link_gigabytes
    for of_vocabulary, name in ((False, "layers"), (True, "vocabulary")):
        arrays = [each for each in held if each.of_vocabulary == of_vocabulary]
        summed = sum(2 * each.gradient * (1 - 1 / each.devices) for each in arrays)
        yield f"gradients of the {name}, summed", summed, across
        # A vocabulary that the tensor axis does not divide is whole between steps.
        rest = sum(max(0, each.moment - each.gradient) for each in arrays)
        yield f"gradients of the {name}, gathered", rest, beside
        if command.config.shard_state != "none":
            parts = sum(max(each.gradient, each.state) - each.moment for each in arrays)
            yield f"parameters of the {name}, gathered", parts, across
    if tensor > 1:
        sent = _NUMBER * places * (tensor - 1)
        yield "hidden states, their gradients", 2 * sent * config.output_size, beside
        yield "look-ups, their gradients", 2 * sent * (config.embedding_size or 0), beside
        # Ids, twice, and targets; highest logit, sum, target's logit, and whether it is the first.
        yield "ids, sums of exponentials", (3 + 4) * sent, beside


def _matrix_entries(model: Any, params: Any) -> int:
    """Entries of the matrices that multiply every token, without look-ups."""
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
    data, tensor = found.mesh.values()
    yield (
        f"{data} x {tensor} devices (data x tensor), on each {found.rows} rows of "
        f"{found.times} tokens"
    )
    yield "\nparameters"
    for name, number in found.parameters.items():
        yield f"  {name:44}{number:>16,}"
    yield "\nmemory of a device"
    for name, number in found.memory.items():
        yield f"  {name:44}{decimal(number, precision=2):>16}"
    yield "\nsent by a device in a step"
    for name, each in found.traffic.items():
        yield f"  {name:44}{decimal(each.sent, precision=2):>16}{each.ms:>12.3g} ms"
    yield "\nwork of a device in a step"
    operations = f"{found.work / 1e12:,.3g} x 10^12"
    yield f"  {'multiplications and additions':44}{operations:>16}{found.work_ms:>12.3g} ms"

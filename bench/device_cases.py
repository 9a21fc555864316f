"""Cases of `bench device`: layers, training and sampling, and the ways to run each."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bench import sample, train
from bench.card import DTYPES
from bench.contest import with_peer
from bench.launches import GRAPH
from bench.layer import require_same_gradients
from bench.limits import products_of_layer
from bench.ours import Peer, forward_of, named
from bench.peers import OURS, Arrays, Implementation, LayerPass
from bench.shapes import SYSTEMS, DType, Job, LayerShape, StoredDType, System, system_named
from bench.workers import Built, Disagreement
from lstm_jax.recurrence import Backend

REPEATS = 5

_FIRST = (
    LayerShape("lstm", 100, 100, 512, 512, layers=2),
    LayerShape("lstm", 35, 32, 256, 256),
    LayerShape("gru", 1024, 64, 768, 768),
    LayerShape("lstm", 1024, 16, 768, 768),
)
_ALONE = LayerShape("lstm", 100, 100, 512, 512)
_OTHERS = (
    LayerShape("gru", 100, 100, 512, 512, layers=2),
    LayerShape("gru", 35, 32, 256, 256),
    LayerShape("lstm", 1024, 64, 768, 768),
    LayerShape("gru", 100, 100, 512, 512),
    LayerShape("gru", 1024, 16, 768, 768),
    LayerShape("lstm", 4096, 1, 256, 256),
    LayerShape("gru", 4096, 1, 256, 256),
)
_FORWARD = "ys of the forward pass alone"
_WIDE = System("wide", 83, "lstm", 2, 1024, 100, 100)
_SMALL = {"vocabulary_size": 11, "hidden_size": 8, "batch_size": 4, "sequence_length": 6} | {
    "times": 6, "batch": 4, "input_size": 8
}  # fmt: skip


class Way(NamedTuple):
    """A way to run ours or a peer, and its name in the rows."""

    name: str
    peer: str
    options: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}  # of the process, which all ways of this name share.
    changes: Mapping[str, Any] = {}  # fields of the layer's shape that differ from the case's.
    dtype: str = ""  # dtype of the products, if different from the case's.


class Case(NamedTuple):
    """One computation, and the ways to run it."""

    part: str
    system: str  # name of the computation in the rows.
    dtype: DType
    ways: tuple[Way, ...]
    #: (implementation, way) -> what to time; its evidence takes the reference.
    build: Callable[..., Built]
    reference: Callable[[], Any]  # compute on the host what all are compared with.
    tokens: int  # tokens per call.
    flops: int = 0  # operations of the products of a call, forward and backward.

    def keys(self) -> set[tuple[str, ...]]:
        """Part, system, implementation and dtype of its rows."""
        return {(self.part, self.system, w.name, w.dtype or self.dtype) for w in self.ways}


_GRAPHED = {"XLA_FLAGS": " ".join(f"--{k}={'true' if v is True else v}" for k, v in GRAPH.items())}
_OURS = (Way("lstm_jax", OURS), Way("lstm_jax one graph", OURS, environment=_GRAPHED))


def _pytorch(name: str = "pytorch", **options: Any) -> tuple[Way, Way]:
    graphed = Way(f"{name} graph", "pytorch", {**options, "graphed": True})
    return Way(name, "pytorch", options), graphed


def _of_ours(name: str, **changes: Any) -> Way:
    return Way(f"lstm_jax {name}", OURS, changes=changes)


def layer_cases(*, small: bool) -> list[Case]:
    """Shapes with a bar in one dtype, then what only ours can do, then everything else."""
    known = ("auto", "scan", "parallel", "reference")
    ours = [way._replace(changes={"backend": "scan"}) for way in _OURS]
    ours += [_of_ours(name, backend=name) for name in get_args(Backend) if name not in known]
    peers = [Way(name, name) for name in ("flax-nnx", "keras", "jax-rnn")]
    half = Way("pytorch float16", "pytorch", {"stored": "float16"}, dtype="float16")
    usual: dict[DType, list[Way]] = {each: [*ours, *_pytorch(), *peers] for each in DTYPES}
    usual["bfloat16"] = [*ours, *_pytorch(stored="bfloat16"), half, *peers]
    first, *others = DTYPES
    unrolled = [
        _of_ours(f"unroll {n}", backend="scan", unroll=n)
        for n in (10, 1, 4, 25)[: 1 if small else None]
    ]
    both = [_of_ours(how, directions=how) for how in ("in turn", "at once")]
    plan = [(shape, first, usual[first]) for shape in (*_FIRST, _ALONE)]
    plan += [
        (dataclasses.replace(_ALONE, flags=True), first, ours),
        (_ALONE, first, unrolled),
        (dataclasses.replace(_ALONE, directions="in turn"), first, both),
    ]
    plan += [(shape, dtype, usual[dtype]) for dtype, shape in product(others, _FIRST)]
    plan += [(shape, dtype, usual[dtype]) for shape, dtype in product((*_OTHERS, _ALONE), DTYPES)]
    cases, seed = [], secrets.randbelow(2**31)
    for shape, dtype, ways in [plan[n] for n in (2, 5, 6, 7, 8)] if small else plan:
        shape = dataclasses.replace(shape, seed=seed, **_smaller(shape, small))
        each = shape.layers * (2 if shape.directions else 1)  # where D is H
        flops = each * sum(n * p.flops for p, n in products_of_layer(shape).items())
        build, reference = partial(_layer, shape, dtype), partial(_exact_layer, shape)
        tokens = shape.times * shape.batch
        made = Case("layers", shape.name, dtype, tuple(ways), build, reference, tokens, flops)
        cases.append(made)
    return cases


def training_cases(*, small: bool) -> list[Case]:
    """The systems and a wide one; torch.compile, which takes long, comes last."""
    first = (system_named("anna"), system_named("lyrics"), _WIDE)
    systems = [*first, *(each for each in SYSTEMS if each not in first)]
    compiled = _pytorch("pytorch compiled", compiled=True)
    ways = ((DTYPES[0], _pytorch()), (DTYPES[1], _pytorch()), (DTYPES[0], compiled))
    cases = []
    for (dtype, peers), system in list(product(ways, systems))[: 1 if small else None]:
        system = dataclasses.replace(system, **_smaller(system, small))
        work = train.work_of(system, dtype)
        flops = sum(n * p.flops for p, n in work.products.items())
        build = partial(_against_ours, work.build, work.evidence, work.require_same)
        reference = partial(with_peer, train.work_of(system, "float32").evidence, OURS, {})
        about = ("train", system.name, dtype, (*_OURS, *peers))
        cases.append(Case(*about, build, reference, work.tokens, flops))
    return cases


def sampling_cases(*, small: bool) -> list[Case]:
    anna: Any = system_named("anna")
    anna = dataclasses.replace(anna, **_smaller(anna, small))
    evidence = partial(sample.continuations, system=anna)
    reference = partial(with_peer, evidence, OURS, {})
    dtypes: tuple[StoredDType, ...] = ("float32", "bfloat16")
    cases = []
    for dtype, batch in product(dtypes, (1,) if small else (1, 16, 128, 1024)):
        job = Job(batch, 10, 8, top_n=5) if small else Job(batch, 100, 200, top_n=5)
        writes: Any = partial(sample.build, system=anna, dtype=dtype, job=job)
        build = partial(_against_ours, writes, evidence, sample.require_same_continuations)
        about = ("sample", f"{anna.name}, batch {batch}", dtype, (*_OURS, *_pytorch()))
        cases.append(Case(*about, build, reference, tokens=job.places * batch))
    return cases


def _smaller(work: Any, small: bool) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(work)}
    return {name: size for name, size in _SMALL.items() if small and name in names}


def _layer(shape: LayerShape, dtype: Any, peer: Implementation, way: Way) -> Built:
    dtype = way.dtype or dtype
    made = peer.layer(dataclasses.replace(shape, **way.changes), dtype)
    calls = {"pass": made.run, "forward": made.forward}
    return Built(calls, made.settings, partial(errors, peer, made, dtype))


def _exact_layer(shape: LayerShape) -> Arrays:
    """Outputs and gradients in float64, from the step function alone."""
    one_by_one = shape.directions and "in turn"
    plain = dataclasses.replace(shape, backend="reference", directions=one_by_one)
    work, forward = shape.work(), forward_of(plain, "float32")
    with jax.enable_x64(True):
        given = (work.layers, work.carries, work.xs, work.dys)
        *inputs, dys = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), given)

        @jax.jit
        def both(inputs: Any, dys: Any) -> Any:
            ys, pull = jax.vjp(forward, *inputs)
            return ys, pull(dys)

        ys, found = both(inputs, dys)
        arrays = named(*found) | {"ys": ys, _FORWARD: ys}
        return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def errors(peer: Implementation, made: LayerPass, dtype: str, exact: Arrays) -> dict[str, Any]:
    """Compare repeated passes, each in memory full of NaNs, with float64 and with each other.

    Raises Disagreement if an array differs too much, or ours has different bits.
    """
    passes: list[Arrays] = []
    same_bits = True
    for _ in range(REPEATS):
        peer.poison([array.shape for array in exact.values()])
        found = {**made.gradients(), _FORWARD: made.outputs()}
        passes = passes or [found]
        same_bits &= all(np.array_equal(array, found[k]) for k, array in passes[0].items())
    away = require_same_gradients(passes[0], exact, dtype, "that in float64")
    if isinstance(peer, Peer) and not same_bits:
        raise Disagreement(f"{REPEATS} passes differ in their bits")
    return {"away": away, "same_bits": same_bits}


def _against_ours(
    build: Any, evidence: Any, require_same: Any, peer: Implementation, way: Way
) -> Built:
    def shown(ours: Any) -> dict[str, Any]:
        require_same(evidence(peer), ours)
        return {}

    built: Built = build(peer)
    calls = {name: built.calls[name] for name in ("step", "write") if name in built.calls}
    return Built(calls, built.settings, shown)

"""Shapes of the systems, and the data and weights that every implementation starts from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from jax import random

from lstm_jax.cells import CellName, cell_named
from lstm_jax.classifier import Classifier, ClassifierConfig, ClassifierParams
from lstm_jax.models import LanguageModel, LanguageModelConfig, LanguageModelParams, output_layer
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend
from lstm_jax.stack import Directions, StackConfig

DType = ComputeDtype  # Dtype of the products; parameters, sums and loss are float32 in all.
StoredDType = Literal["float32", "bfloat16"]  # Dtype of a model's weights when it writes.
PEERS_CELLS = ("lstm", "gru")  # Cells that every peer has.
BATCHES = 16
"""Batches per epoch; the recurrent state is zeroed at its start and carried through it."""

_OUTPUT_SCALE = 32.0
_MISSING_VECTORS = 50  # One word in this many has no vector.
_RESETS = 0.02  # Share of times at which a sequence begins.


@dataclass(frozen=True)
class System:
    """Shape of a language model, and settings of its training by Adam."""

    name: str
    vocabulary_size: int
    cell: CellName  # "lstm", or "gru" (reset after the product).
    layers: int
    hidden_size: int
    batch_size: int
    sequence_length: int
    embedding_size: int | None = None  # None feeds tokens one-hot.
    #: dropout rate on every layer's outputs including the last, or on its inputs.
    dropout: float = 0.0
    clip_norm: float = 5.0  # global norm to which gradients are clipped.
    learning_rate: float = 1e-3
    #: "outputs", drawn anew at each time step; or "inputs", one mask per sequence, which the peers
    #: only have for one layer.
    dropout_place: Literal["outputs", "inputs"] = "outputs"
    output_dropout: float = 0.0  # additional dropout rate on the output layer's inputs.
    tied: bool = False  # the output layer's weights are the embedding's.
    #: carry the recurrent state between batches; otherwise sequences are independent.
    carried: bool = True
    #: time steps per chunk whose activations ours recomputes; None keeps all.
    remat: int | None = None
    backend: Backend = "auto"  # implementation of ours.

    @property
    def input_size(self) -> int:
        return self.embedding_size or self.vocabulary_size

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def rows(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """One epoch of random tokens, int32 `[BATCHES T + 1, B]`, time first."""
        shape = (BATCHES * self.sequence_length + 1, self.batch_size)
        draw = np.random.default_rng(0)
        return draw.integers(0, self.vocabulary_size, shape, dtype=np.int32)

    def batch(self, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets `[T, B]` of one batch; epochs repeat."""
        start = index % BATCHES * self.sequence_length
        rows = self.rows()[start : start + self.sequence_length + 1]
        return rows[:-1], rows[1:]

    def model(self, dtype: ComputeDtype) -> LanguageModel:
        config = LanguageModelConfig(compute_dtype=dtype, **_shared(self, LanguageModelConfig))
        return LanguageModel(config, self.vocabulary_size)

    def initial_params(self) -> LanguageModelParams:
        """Initial weights, the same for every implementation.

        The output layer is larger than usual: otherwise the first loss would be log V whatever the
        layers below compute, and comparing it would prove nothing. A GRU's bias inside the reset
        product is zero, since Flax's cell has none.
        """
        params = self.model("float32").init(random.key(0))
        if not self.tied:
            output = output_layer(params)
            params = params._replace(output=output._replace(w=output.w * _OUTPUT_SCALE))
        return params._replace(layers=tuple(map(_without_inner_bias, params.layers)))

    def without_dropout(self) -> Self:
        return dataclasses.replace(self, dropout=0.0, output_dropout=0.0)


@dataclass(frozen=True)
class Classification:
    """Shape of a text classifier on frozen word vectors, and settings of its training by Adam.

    Words without a vector learn one. Each batch holds other texts. The logit comes from the top
    LSTM's last state, through a ReLU layer.
    """

    name: str
    vocabulary_size: int
    layers: int
    hidden_size: int
    batch_size: int
    sequence_length: int
    embedding_size: int
    dense_size: int  # units of the ReLU layer.
    dropout: float = 0.0  # dropout rate on every layer's inputs, with one mask per text.
    word_dropout: float = 0.0  # share of words whose vector is zeroed.
    dense_dropout: float = 0.0  # dropout rate on the ReLU layer's outputs.
    learning_rate: float = 1e-3

    cell: ClassVar[CellName] = "lstm"
    clip_norm: ClassVar[float | None] = None
    carried: ClassVar[bool] = False

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def batch(self, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Random words `[T, B]` and labels `[B]` of one batch; epochs repeat."""
        draw = np.random.default_rng(index % BATCHES)
        shape = (self.sequence_length, self.batch_size)
        words = draw.integers(0, self.vocabulary_size, shape, dtype=np.int32)
        return words, draw.integers(0, 2, self.batch_size, dtype=np.int32)

    def vectors(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Frozen vectors `[V, E]`; a row of zeros is a word without one."""
        draw = np.random.default_rng(0)
        found = draw.standard_normal((self.vocabulary_size, self.embedding_size), np.float32)
        found[::_MISSING_VECTORS] = 0
        return found

    def model(self, dtype: ComputeDtype) -> Classifier:
        given = _shared(self, ClassifierConfig) | {"frozen_embedding": True, "learn_missing": True}
        config = ClassifierConfig(dropout_place="inputs", compute_dtype=dtype, **given)
        return Classifier(config, self.vocabulary_size)

    def initial_params(self) -> ClassifierParams:
        """Initial trained weights; see `System.initial_params`."""
        params = self.model("float32").init(random.key(0))
        output = params.output._replace(w=params.output.w * _OUTPUT_SCALE)
        return params._replace(output=output, vectors=None)

    def without_dropout(self) -> Self:
        return dataclasses.replace(self, dropout=0.0, word_dropout=0.0, dense_dropout=0.0)


def _shared(shape: Any, config: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(shape, name) for name in names if hasattr(shape, name)}


def _without_inner_bias(layer: Any) -> Any:
    """Zero the bias inside a GRU's reset product; other cells have none."""
    return layer._replace(b_hn=layer.b_hn * 0) if hasattr(layer, "b_hn") else layer


class LayerWork(NamedTuple):
    """The layers' weights and initial carries, inputs, and gradient of the outputs."""

    layers: tuple[Any, ...]
    carries: tuple[Any, ...]
    xs: np.ndarray[Any, np.dtype[np.float32]]
    dys: np.ndarray[Any, np.dtype[np.float32]]
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    resets: np.ndarray[Any, np.dtype[np.bool_]] | None = None

    @property
    def only(self) -> tuple[Any, Any]:
        """Weights and carry of a single layer; raises ValueError for anything else."""
        if len(self.layers) > 1 or self.mask is not None or isinstance(self.layers[0], Directions):
            raise ValueError("it has only single layers in one direction, without masks")
        return self.layers[0], self.carries[0]


@dataclass(frozen=True)
class LayerShape:
    """One recurrent layer of T, B, D and H, or a stack; a GRU resets after the product."""

    cell: CellName
    times: int
    batch: int
    input_size: int
    hidden_size: int
    backend: Backend = "auto"  # implementation of ours.
    layers: int = 1
    unroll: int | None = None  # steps per iteration of ours.
    #: whether the layer is bidirectional (ours only), in two loops or one.
    directions: Literal["", "in turn", "at once"] = ""
    #: whether sequences end early (a mask) and begin anew now and then (resets).
    flags: bool = False
    seed: int = 0  # seed of the arrays.

    @property
    def name(self) -> str:
        """Name in the rows: the cell, T, B, D, H, and the backend unless it is the default."""
        sizes = (self.times, self.batch, self.input_size, self.hidden_size)
        how: list[str] = [] if self.backend == "auto" else [self.backend]
        how += [f"x {self.layers}"] * (self.layers > 1) + ["both ways"] * bool(self.directions)
        return " ".join([self.cell, ",".join(map(str, sizes)), *how, *["flags"] * self.flags])

    def config(self, dtype: DType) -> StackConfig:
        how: Any = _shared(self, StackConfig)
        both = {"bidirectional": bool(self.directions)}
        at_once = {"directions_at_once": self.directions == "at once"}
        return StackConfig(compute_dtype=dtype, **(how | both | at_once))

    def work(self) -> LayerWork:
        """Inputs of every implementation; a GRU's bias inside the reset product is zero."""
        draw = np.random.default_rng(self.seed)

        def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
            return draw.standard_normal(shape, np.float32)

        cell, width = cell_named(self.cell), self.hidden_size
        names: tuple[str, ...] = cell.carry._fields
        layers, carries = [], []
        for index in range(max(self.layers, 2 if self.directions else 1)):
            size = width if index and not self.directions else self.input_size
            params = cell.init(random.key(self.seed + index), size, width)
            layers.append(_without_inner_bias(params))
            carries.append(cell.carry(*(0.5 * normal(self.batch, width) for _ in names)))
        if self.directions:
            layers, carries, width = [Directions(*layers)], [Directions(*carries)], 2 * width
        xs = normal(self.times, self.batch, self.input_size)
        dys = normal(self.times, self.batch, width)
        if not self.flags:
            return LayerWork(tuple(layers), tuple(carries), xs, dys)
        ends = draw.integers(self.times // 2, self.times + 1, self.batch)
        mask = np.arange(self.times)[:, None] < ends
        resets = draw.random((self.times, self.batch)) < _RESETS
        return LayerWork(tuple(layers), tuple(carries), xs, dys, mask, resets)


AnySystem = System | Classification
AnyParams = LanguageModelParams | ClassifierParams


@dataclass(frozen=True)
class Job:
    """A task for sampling: a batch of texts that continue prompts."""

    batch: int
    prompt_length: int
    places: int  # number of tokens to generate in each.
    temperature: float = 1.0  # 0 takes the most likely token.
    top_n: int = 0  # 0 draws from all.

    def prompts(self, system: System) -> np.ndarray[Any, np.dtype[np.int32]]:
        draw = np.random.default_rng(0)
        shape = (self.prompt_length, self.batch)
        return draw.integers(0, system.vocabulary_size, shape, dtype=np.int32)


SYSTEMS: tuple[AnySystem, ...] = (
    System("lyrics", 1027, "lstm", 1, 256, 32, 35, clip_norm=0.01),
    System("lyrics-gru", 1027, "gru", 1, 256, 32, 35, clip_norm=0.01),
    System("shakespeare", 8009, "lstm", 1, 128, 100, 50, 128),
    System("anna", 83, "lstm", 2, 512, 100, 100, dropout=0.5),
    System(
        *("poems", 5546, "lstm", 1, 256, 32, 49, 256),
        dropout=0.4,
        clip_norm=1.0,
        learning_rate=3e-3,
        output_dropout=0.5,
        dropout_place="inputs",
        tied=True,
        carried=False,
    ),
    Classification("reviews", 10_000, 2, 64, 128, 80, 50, 32, 0.2, 0.4, 0.5, 2e-3),
)
"""The library's presets, with vocabulary, cell, layers, hidden size, batch, length, ..."""


def system_named(name: str, *, writes: bool = False) -> AnySystem:
    """The system with this name; raises ValueError if there is none that can do the work."""
    found = {each.name: each for each in SYSTEMS if isinstance(each, System) or not writes}
    if name not in found:
        kind = "system that writes" if writes else "system"
        raise ValueError(f"there is no {kind} {name!r}; choose from {', '.join(found)}")
    return found[name]


def systems_named(names: Sequence[str], *, quick: bool) -> list[AnySystem]:
    """The systems with these names; by default all, or with `quick` the first."""
    return [system_named(name) for name in names] or list(SYSTEMS[:1] if quick else SYSTEMS)

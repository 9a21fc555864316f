"""Stacked recurrent layers, unidirectional or bidirectional, with dropout as in other frameworks.

Shapes: T time, B batch, D input size, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from lstm_jax import cells
from lstm_jax.cells import Activation, Cell, CellName, GRUReset, cell_named, cell_of, zero_carry
from lstm_jax.checks import require_key
from lstm_jax.dropout import fold
from lstm_jax.initialisation import Initialisation
from lstm_jax.kernels import cudnn
from lstm_jax.kernels.carries import cuts_backward, reset_rows
from lstm_jax.kernels.chunks import is_shorter
from lstm_jax.kernels.options import require_steps, steps_only
from lstm_jax.precision import ComputeDtype
from lstm_jax.recurrence import Backend, layer, require_backend
from lstm_jax.recurrent_dropout import DropoutPlace, Drops, RecurrentDropout, RecurrentDropoutKind
from lstm_jax.settings import Bounds, Changeable, Count, OrInstance, Share, Size, check
from lstm_jax.wavefront import run_pair

if TYPE_CHECKING:
    CellOrName = Cell | CellName
else:  # Command lines have the names alone.
    CellOrName = Annotated[CellName, OrInstance(Cell)]


class Directions(NamedTuple):
    """Parameters or carries of the two directions of a bidirectional layer.

    Examples:
        >>> config = lstm_jax.StackConfig(hidden_size=4, bidirectional=True)
        >>> (layer,) = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> layer.backward.w_x.shape
        (3, 16)
    """

    forward: Any
    backward: Any


@dataclass(frozen=True)
class StackConfig:
    """Settings of a stack of recurrent layers.

    Attributes:
        cell: name of the recurrent cell, or your own cell from `declare_cell`.
        layers: number of stacked layers.
        hidden_size: H, units of each layer and direction.
        projection_size: P, the size to which an LSTM's hidden states are projected, `proj_size` in
            PyTorch (Sak et al., arXiv:1402.1128); None for no projection.
        bidirectional: run each layer backward in time too; outputs are concatenated, size 2H.
        directions_at_once: run both directions of a layer in one loop instead of in turn, with
            half the kernel launches on GPU; off by default, as it has not been timed on any.
        wavefront: K, to run layers in pairs, the upper delayed by K time steps, in one loop of
            T + K steps instead of 2T; for GPUs, not timed on any. None runs layers in turn.
        gru_reset: apply a GRU's reset gate after the recurrent product (cuDNN, PyTorch, Keras) or
            before it (the original paper).
        use_bias: False for layers without biases.
        initialisation: framework whose initial distributions are used, see `init_lstm`.
        dropout: dropout rate in training, 0 <= dropout < 1.
        dropout_place: where to drop: "between" layers (PyTorch) or on every layer's "outputs"
            including the last (TF1's wrapper), both drawn anew at each time step; or on every
            layer's "inputs", with one mask per sequence (Keras).
        recurrent_dropout: dropout rate between time steps in training.
        recurrent_dropout_kind: "state" drops h before the recurrent product, with one mask per
            sequence (Gal and Ghahramani, arXiv:1512.05287; Keras draws one per gate). "candidate"
            drops an LSTM's tanh(g) or a GRU's n at each time step (Semeniuta et al.,
            arXiv:1603.05118). "zoneout" keeps units of the carry as they were at each time step;
            outside training each keeps that share of its value (Krueger et al., arXiv:1606.01305).
        zoneout_cell: zoneout's rate for an LSTM's c; None for `recurrent_dropout`.
        activation: in place of tanh, see `lstm`.
        recurrent_activation: in place of the gates' sigmoid.
        compute_dtype: dtype of the matrix products.
        backend: implementation of the recurrence, see `lstm`.
        unroll: time steps per iteration of the loop; None chooses for the platform.
        remat: time steps per chunk whose activations are recomputed in the backward pass, see
            `lstm`; None keeps all.

    Examples:
        >>> lstm_jax.StackConfig(layers=2, hidden_size=4, bidirectional=True).output_size
        8
    """

    cell: CellOrName = "lstm"
    layers: Annotated[int, Bounds(1, 128)] = 1
    hidden_size: Size = 128
    projection_size: Size | None = None
    bidirectional: bool = False
    directions_at_once: Changeable[bool] = False
    wavefront: Changeable[Count | None] = None
    gru_reset: GRUReset = "after"
    use_bias: bool = True
    initialisation: Initialisation = "pytorch"
    dropout: Changeable[Share] = 0.0
    dropout_place: Changeable[DropoutPlace] = "between"
    recurrent_dropout: Changeable[Share] = 0.0
    recurrent_dropout_kind: Changeable[RecurrentDropoutKind] = "state"
    zoneout_cell: Changeable[Share | None] = None
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    compute_dtype: Changeable[ComputeDtype] = "float32"
    backend: Changeable[Backend] = "auto"
    unroll: Changeable[Size | None] = None
    remat: Changeable[Count | None] = None

    def __post_init__(self) -> None:
        check(self)
        cell = cell_named(self.cell)
        require_backend(cell, self.backend)
        if self.backend == "cudnn":
            cudnn.refuse(
                {
                    "a projection": self.projection_size is not None,
                    "products in bfloat16": self.compute_dtype == "bfloat16",
                    "unroll": self.unroll is not None,
                }
            )
        if self.wavefront is not None:
            self._require_wavefront(cell)
        if self.directions_at_once and not self.bidirectional:
            raise ValueError("directions_at_once is True, but bidirectional is False; leave it")
        if self.gru_reset != "after" and cell is not cells.GRU:
            raise ValueError(f"gru_reset is {self.gru_reset!r}, which {cell.name} lacks; leave it")
        if not self.use_bias and "use_bias" not in signature(cell.init).parameters:
            raise ValueError(f"use_bias is False, but {cell.name} needs its biases; leave it True")
        self.recurrent.check(cell)
        option = self.recurrent.option
        options = self.step_options | ({option: True} if option else {})
        no_scale = bool(self.projection_size) or self.backend == "cudnn"
        names = {option: f"recurrent_dropout_kind {self.recurrent_dropout_kind!r}"}
        plain = (names.get(each, each) for each in steps_only(cell, options, no_scale))
        require_steps(list(plain), self.backend)
        if self.projection_size and cell is not cells.LSTM:
            raise ValueError(
                f"projection_size is {self.projection_size}, and a {cell.name} has no projection; "
                "leave it, or set cell to 'lstm'"
            )

    def _require_wavefront(self, cell: Cell) -> None:
        """Raise ValueError if layers cannot run side by side."""
        no = {
            "layers is 1": self.layers == 1,
            "bidirectional is True": self.bidirectional,
            f"backend is {self.backend!r}": self.backend not in ("auto", "scan"),
            f"cell is {cell.name!r}": not cell.has_kernel,
            "use_bias is False": not self.use_bias,
            "an activation or recurrent_dropout is set": self.step_options or self.recurrent.option,
        }
        for what, is_so in no.items():
            if is_so:
                raise ValueError(
                    f"wavefront is {self.wavefront}, but {what}; it needs layers above each other, "
                    "one direction, backend 'auto' or 'scan', and a cell lstm, gru or rnn, so set "
                    "wavefront to None"
                )

    @property
    def recurrent(self) -> RecurrentDropout:
        """Dropout between time steps."""
        kind, rate = self.recurrent_dropout_kind, self.recurrent_dropout
        return RecurrentDropout(kind, rate, self.zoneout_cell)

    @property
    def step_options(self) -> dict[str, Any]:
        """Step options that differ from the defaults; ValueError if the cell lacks one."""
        names = ("activation", "recurrent_activation")
        given = {name: getattr(self, name) for name in names}
        return cells.chosen(cell_named(self.cell), given)

    @property
    def output_size(self) -> int:
        """Size of the top layer's outputs."""
        return (self.projection_size or self.hidden_size) * (2 if self.bidirectional else 1)


def init_stack(
    key: Array, config: StackConfig, input_size: int, dtype: DTypeLike = jnp.float32
) -> tuple[Any, ...]:
    """Draw the parameters: one entry per layer, a `Directions` if bidirectional.

    Examples:
        >>> config = lstm_jax.StackConfig(layers=2, hidden_size=4)
        >>> layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> [layer.w_x.shape for layer in layers]
        [(3, 16), (4, 16)]
    """
    options: dict[str, Any] = {"initialisation": config.initialisation, "dtype": dtype}
    if cell_named(config.cell) is cells.GRU:
        options["reset"] = config.gru_reset
    if config.projection_size:
        options["projection_size"] = config.projection_size
    if not config.use_bias:
        options["use_bias"] = False

    def draw(key: Array, size: int) -> Any:
        return cell_named(config.cell).init(key, size, config.hidden_size, **options)

    layers: list[Any] = []
    for index in range(config.layers):
        size = input_size if index == 0 else config.output_size
        key_layer = random.fold_in(key, index)
        if config.bidirectional:
            keys = random.split(key_layer)
            layers.append(Directions(draw(keys[0], size), draw(keys[1], size)))
        else:
            layers.append(draw(key_layer, size))
    return tuple(layers)


def stack_zero_carry(layers: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    """The stack's zero carry, with the structure of its parameters.

    Examples:
        >>> config = lstm_jax.StackConfig(cell="gru", layers=2, hidden_size=4)
        >>> layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> [carry.h.shape for carry in lstm_jax.stack_zero_carry(layers, batch_size=2)]
        [(2, 4), (2, 4)]
    """
    return tuple(each_direction(partial(zero_carry, batch_size=batch_size), p) for p in layers)


def each_direction(function: Callable[..., Any], *entries: Any) -> Any:
    """The function of entries of a layer, or of those of each of its directions."""
    if isinstance(entries[0], Directions):
        return Directions(*map(function, *entries))
    return function(*entries)


def last_states(carry: Any) -> Array:
    """Each direction's state after its last real step, concatenated."""
    ends = carry if isinstance(carry, Directions) else (carry,)
    return jnp.concatenate([end.h for end in ends], axis=-1)


def without_backward_carry(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    """The carry with zeros for backward directions, whose sequences end with the chunk."""
    return tuple(
        entry._replace(backward=jax.tree.map(jnp.zeros_like, entry.backward))
        if isinstance(entry, Directions)
        else entry
        for entry in carry
    )


def run_stack(
    config: StackConfig,
    layers: tuple[Any, ...],
    carry: tuple[Any, ...] | None,
    xs: Array,
    *,
    mask: Array | None = None,
    resets: Array | None = None,
    dropout_key: Array | None = None,
    chunk: Array | None = None,
) -> tuple[tuple[Any, ...], Array]:
    """Run the stack over time.

    Args:
        config: settings of the stack.
        layers: parameters, from `init_stack`.
        carry: one entry per layer, or None for zeros; a backward one enters at the last time step.
        xs: `[T, B, D]`, or integers `[T, B]` that stand for one-hot rows.
        mask: bool `[T, B]`, see `lstm`.
        resets: bool `[T, B]`, see `lstm`.
        dropout_key: a typed key, or one per sequence, `[B]`; None disables dropout.
        chunk: index of this chunk of `config.remat` time steps, if a sequence comes in several:
            with the same key, recurrent dropout is that of the whole sequence.

    Returns:
        The final carry, and the top layer's outputs `[T, B, H]`, or `[T, B, 2H]`.

    Raises:
        ValueError: parameters, carry or keys do not match the config or `xs`, or as for `lstm`.
        TypeError: `dropout_key` is no typed key.

    Examples:
        >>> config = lstm_jax.StackConfig(layers=2, hidden_size=4, bidirectional=True, dropout=0.5)
        >>> layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> carry, ys = lstm_jax.run_stack(
        ...     config, layers, None, jnp.ones((10, 2, 3)), dropout_key=jax.random.key(1)
        ... )
        >>> ys.shape
        (10, 2, 8)
    """
    if carry is None:
        carry = (None,) * len(layers)
    _check(config, layers, carry)
    place, keys = config.dropout_place, None
    if dropout_key is not None:
        require_key("dropout_key", dropout_key, xs)
        own = dropout_key if chunk is None or place == "inputs" else fold(dropout_key, chunk)
        keys = [fold(own, n) for n in range(len(layers))] if config.dropout else None
    drops = Drops(config.dropout, place, keys)

    def run(
        params: Any, carry: Any, masks: Any, xs: Array, mask: Any, resets: Any, scale: Any,
        **way: Any,
    ) -> tuple[Any, Array]:  # fmt: skip
        return layer(
            params, carry, xs, mask=mask, resets=resets, input_scale=scale,
            backend=config.backend, compute_dtype=config.compute_dtype, unroll=config.unroll,
            remat=config.remat, **config.step_options, **masks, **way,
        )  # fmt: skip

    def masks_of(params: Any, index: int) -> Any:
        if config.recurrent.option is None:
            return each_direction(lambda _: {}, params)
        times = jnp.arange(xs.shape[0]) + (0 if chunk is None else chunk * (config.remat or 0))
        key = None if dropout_key is None else fold(dropout_key, config.layers + 2)
        return config.recurrent.of_layer(key, index, params, times, xs.shape[1])

    finals: list[Any] = []
    while (index := len(finals)) < len(layers):
        params, before = layers[index], carry[index]
        xs, input_scale = drops.inputs(index, xs, params)
        inputs = (xs, mask, resets, input_scale)
        with jax.named_scope(f"{cell_named(config.cell).name}_{index}"):
            if isinstance(params, Directions):
                both = _at_once if config.directions_at_once else _in_turn
                carried = before or Directions(None, None)
                final, xs = both(run, params, carried, masks_of(params, index), *inputs)
            elif index + 1 < len(layers) and is_shorter(config.wavefront, xs.shape[0]):
                upper = layers[index + 1]
                (below, final), xs = run_pair(
                    (params, upper), carry[index : index + 2], *inputs,
                    drops.between(index, xs.shape[:2], upper), delay=config.wavefront,
                    compute_dtype=config.compute_dtype, unroll=config.unroll, remat=config.remat,
                )  # fmt: skip
                finals.append(below)
            else:
                final, xs = run(params, before, masks_of(params, index), *inputs)
        finals.append(final)
        xs = drops.outputs(len(finals) - 1, xs)
    return tuple(finals), xs


def step_stack(
    config: StackConfig,
    layers: tuple[Any, ...],
    carry: tuple[Any, ...],
    x: Array,
    *,
    allow_bidirectional: bool = False,
) -> tuple[tuple[Any, ...], Array]:
    """Run one time step of the stack, without dropout, as in decoding.

    Args:
        config: settings of the stack.
        layers: parameters, from `init_stack`.
        carry: one entry per layer.
        x: `[B, D]`, or integers `[B]` that stand for one-hot rows.
        allow_bidirectional: step backward directions too, as if the step were a whole sequence.
            This shows what a model trained to see the future does without it.

    Returns:
        The new carry, and the top layer's output `[B, H]`.

    Raises:
        ValueError: the stack is bidirectional, so it has no single next step; or parameters or
            carry do not match the config.

    Examples:
        >>> config = lstm_jax.StackConfig(layers=2, hidden_size=4)
        >>> layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
        >>> carry = lstm_jax.stack_zero_carry(layers, 2)
        >>> carry, y = lstm_jax.step_stack(config, layers, carry, jnp.ones((2, 3)))
        >>> y.shape
        (2, 4)
    """
    if config.bidirectional and not allow_bidirectional:
        raise ValueError("a bidirectional stack needs whole sequences; it cannot go step by step")
    _check(config, layers, carry)
    cell_step = partial(
        cell_named(config.cell).step, compute_dtype=config.compute_dtype, **config.step_options
    )

    def step(x: Array, params: Any, before: Any) -> Any:
        return config.recurrent.after_step(before, cell_step(params, before, x)[0])

    finals: list[Any] = []
    for entries in zip(layers, carry, strict=True):
        finals.append(each_direction(partial(step, x), *entries))
        x = last_states(finals[-1])
    return tuple(finals), x


def _check(config: StackConfig, layers: tuple[Any, ...], carry: tuple[Any, ...]) -> None:
    """Raise ValueError if the layers, directions or cells do not match the config."""
    directions = "both directions" if config.bidirectional else "one direction"
    for name, entries in (("parameters", layers), ("carry", carry)):
        if len(entries) != config.layers:
            raise ValueError(
                f"{name} of {len(entries)} layers; config.layers is {config.layers}, so give an "
                "entry for each"
            )
        for index, entry in enumerate(entries):
            if entry is not None and isinstance(entry, Directions) != config.bidirectional:
                raise ValueError(
                    f"{name} of layer {index} are {type(entry).__name__}; config.bidirectional is "
                    f"{config.bidirectional}, so give those of {directions}"
                )
    for index, params in enumerate(layers):
        for each in params if config.bidirectional else (params,):
            if (cell := cell_of(each)) is not (expected := cell_named(config.cell)):
                raise ValueError(
                    f"parameters of layer {index} are {type(each).__name__}, of cell "
                    f"{cell.name!r}; config.cell is {expected.name!r}"
                )


def _in_turn(
    run: Any, params: Directions, carry: Directions, masks: Directions, *inputs: Any
) -> tuple[Directions, Array]:
    forward, forward_TBH = run(params.forward, carry.forward, masks.forward, *inputs)
    backward, backward_TBH = run(
        params.backward, carry.backward, masks.backward, *inputs, reverse=True
    )
    return Directions(forward, backward), jnp.concatenate([forward_TBH, backward_TBH], axis=-1)


def _at_once(
    run: Any, params: Directions, carry: Directions, masks: Directions,
    xs: Array, mask: Any, resets: Any, scale: Any,
) -> tuple[Directions, Array]:  # fmt: skip
    """Run both directions as one `vmap`, the backward one on time-reversed inputs."""
    cuts, cut_at_the_end = (None, None) if resets is None else cuts_backward(resets)
    timed = {name: each for name, each in masks.backward.items() if name != "state_scale"}
    turned, *rest = jax.tree.map(lambda a: a[::-1], (timed, xs, mask, cuts, scale))
    first = (params.forward, carry.forward, masks.forward, xs, mask, resets, scale)
    second = (params.backward, carry.backward, masks.backward | turned, *rest)
    found = jax.vmap(run)(*jax.tree.map(lambda *both: jnp.stack(both), first, second))
    (forward, forward_TBH), (backward, backward_TBH) = (
        jax.tree.map(lambda a, n=n: a[n], found) for n in range(2)
    )
    backward = reset_rows(cut_at_the_end, backward)
    ys_TBH = jnp.concatenate([forward_TBH, backward_TBH[::-1]], axis=-1)
    return Directions(forward, backward), ys_TBH

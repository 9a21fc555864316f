"""Dropout of a stack: between layers and between time steps.

Recurrent masks depend on key, lane and time alone.

Shapes: T time, B batch, H hidden size.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lstm_jax.cells import Cell, cell_of, option_names, zero_carry
from lstm_jax.dropout import dropout_mask, dropout_masks, fold
from lstm_jax.kernels.carries import held

DropoutPlace = Literal["between", "outputs", "inputs"]
RecurrentDropoutKind = Literal["state", "candidate", "zoneout"]


class RecurrentDropout(NamedTuple):
    """Settings of the dropout between time steps; see `StackConfig`.

    Attributes:
        kind: see `recurrent_dropout_kind` there.
        rate: share of the units.
        cell_rate: zoneout's rate for an LSTM's c; None uses `rate`.
    """

    kind: RecurrentDropoutKind
    rate: float
    cell_rate: float | None

    @property
    def option(self) -> str | None:
        """The layer option that implements it; None if it is off."""
        if not self.rate and not self.cell_rate:
            return None
        return {"state": "state_scale", "candidate": "candidate_scale", "zoneout": "hold"}[
            self.kind
        ]

    def check(self, cell: Cell) -> None:
        """Raise ValueError if the cell does not support it."""
        if self.cell_rate is not None and (self.kind != "zoneout" or "c" not in cell.carry._fields):
            raise ValueError(
                f"zoneout_cell is {self.cell_rate}, which is for the c of an LSTM with "
                "recurrent_dropout_kind 'zoneout'; leave it"
            )
        if self.option not in (None, "hold", *option_names(cell)):
            raise ValueError(
                f"recurrent_dropout_kind is {self.kind!r}, which {cell.name} lacks; set it to "
                "'zoneout'"
            )

    def masks(
        self, key: Array | None, params: Any, times: Array, batch_size: int
    ) -> dict[str, Any]:
        """A layer's keyword arguments for these time steps, from a key or a key per sequence.

        Without a key, outside training, there are none, except zoneout's shares.
        """
        carry = jax.eval_shape(lambda: zero_carry(params, batch_size))
        if self.kind == "zoneout":
            shares = self._shares(carry)
            if key is None:
                return {"hold": jax.tree.map(lambda share: jnp.full((1, 1, 1), share), shares)}
            drawn = [
                dropout_masks(fold(key, n), share, times, array.shape, array.dtype)
                for n, (share, array) in enumerate(zip(shares, carry, strict=True))
            ]
            return {"hold": type(carry)(*(mask == 0 for mask in drawn))}
        if key is None:
            return {}
        if self.kind == "state":
            return {"state_scale": dropout_mask(key, self.rate, carry.h.shape, carry.h.dtype)}
        shape = (batch_size, params.w_x.shape[1] // cell_of(params).gates)
        return {"candidate_scale": dropout_masks(key, self.rate, times, shape, carry.h.dtype)}

    def of_layer(
        self, key: Array | None, index: int, params: Any, times: Array, batch_size: int
    ) -> Any:
        """`masks` of the layer with this index; of each direction if it has two."""
        key = None if key is None else fold(key, index)
        if hasattr(params, "forward"):
            each = (self.of_layer(key, n, p, times, batch_size) for n, p in enumerate(params))
            return type(params)(*each)
        return self.masks(key, params, times, batch_size)

    def after_step(self, before: Any, after: Any) -> Any:
        """The carry after one step outside training."""
        if self.option != "hold":
            return after
        return held(jax.tree.map(jnp.asarray, self._shares(after)), before, after)

    def _shares(self, carry: Any) -> Any:
        of_c = self.rate if self.cell_rate is None else self.cell_rate
        return type(carry)(*(of_c if name == "c" else self.rate for name in carry._fields))


class Drops(NamedTuple):
    """The dropout of a stack.

    Attributes:
        rate: dropout rate.
        place: see `StackConfig.dropout_place`.
        keys: one per layer; None drops nothing.
    """

    rate: float
    place: DropoutPlace
    keys: list[Array] | None

    def inputs(self, index: int, xs: Array, params: Any) -> tuple[Array, Array | None]:
        """A layer's inputs after dropout of the same features at all time steps of a sequence.

        Token ids stay ids: the mask of their one-hot rows is returned as a scale `[T, B]`.
        """
        if self.keys is None or self.place != "inputs":
            return xs, None
        shape, is_dense = (xs.shape[1], _input_size(params)), xs.ndim == 3
        dtype = xs.dtype if is_dense else jnp.dtype(jnp.float32)
        scale_BD = dropout_mask(self.keys[index], self.rate, shape, dtype)
        if is_dense:
            return xs * scale_BD[None], None
        return xs, scale_BD[jnp.arange(xs.shape[1]), xs]

    def outputs(self, index: int, ys: Array) -> Array:
        """A layer's outputs after dropout."""
        if self.keys is None or self.place == "inputs":
            return ys
        if self.place == "between" and index == len(self.keys) - 1:
            return ys
        return ys * dropout_mask(self.keys[index], self.rate, ys.shape, ys.dtype)

    def between(self, index: int, shape: tuple[int, ...], upper: Any) -> Array | None:
        """The dropout mask between a layer and the one above it, or None."""
        if self.keys is None:
            return None
        dtype = jnp.promote_types(upper.w_h.dtype, jnp.float32)
        ones_TBH = jnp.ones((*shape, _input_size(upper)), dtype)
        return self.inputs(index + 1, self.outputs(index, ones_TBH), upper)[0]


def _input_size(params: Any) -> int:
    return int(getattr(params, "forward", params).w_x.shape[0])

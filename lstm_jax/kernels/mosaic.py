"""The recurrence as one kernel for all time steps, for Hopper GPUs.

Experimental: it has never run on a GPU. It is written in Pallas's Mosaic GPU, whose API may change
with every jax release. Each cluster computes 64 rows of the batch, each of its blocks 32 units. A
block keeps its part of the recurrent weights in shared memory over all time steps, and its part of
the carry in registers. Blocks exchange h (forward) or the gates' gradients (backward) through a
double buffer in global memory, with one barrier of the cluster per step. Clusters are independent.

Shapes: T time, B batch, H hidden size, G gates side by side; R rows and U units of a block, N
columns of its product, whose contracted axis is split into K chunks of C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.kernels.gpu import Blocks, Elementwise, blocks_of
from lstm_jax.precision import Products

_ROWS = 64  # of a wgmma
_UNITS = 32  # of a block
_MOST_BLOCKS = 8  # largest portable cluster


def refusal(policy: Products, form: Elementwise | None, times: Any, hidden_size: int) -> str | None:
    """The end of a sentence that says why a layer is not supported; None if it is."""
    device = jax.local_devices()[0]
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, and this is {jax.__version__}"
    if device.platform == "gpu" and device.compute_capability != "9.0":
        return f"needs a Hopper GPU, and this is {device.device_kind}"
    if form is None:
        return "has no projection, and resets a GRU after the product"
    if policy.accumulate != jnp.float32 or policy.precision == lax.Precision.HIGHEST:
        return "multiplies in bfloat16 or tf32, and adds in float32"
    if hidden_size % (2 * _UNITS) or not 0 < hidden_size <= _MOST_BLOCKS * _UNITS:
        return f"takes hidden sizes of 64, 128, 192 and 256, and not {hidden_size}"
    return None if isinstance(times, int) else "takes a known number of times"


def forward(
    policy: Products,
    reverse: bool,
    unroll: int | None,
    form: Elementwise,
    weights: Any,
    b_G: Array | None,
    carry: Any,
    gates_TBG: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
) -> tuple[tuple[Any, Array], Array, Any]:
    """Same arguments and results as `gpu.forward`; `unroll` is ignored."""
    times, hidden_size = gates_TBG.shape[0], carry.h.shape[-1]
    parts, blocks = gates_TBG.shape[-1] // hidden_size, hidden_size // _UNITS

    def body(block: _Block, inputs: Any, outputs: Any) -> None:
        (gates, bias, biases, first, *flags), (hs, keeps, final) = inputs, outputs

        def step(index: Array, before: Any) -> Any:
            time = times - 1 - index if reverse else index
            real, reset = (block.flags(each, time) for each in flags)
            from_x = tuple(map(jnp.add, block.read(gates, time), block.read(bias)))
            from_h = _or_zeros(reset, block.product(index & 1))
            before = _or_zeros(reset, before)
            inside = sum(map(block.read, biases), ())
            operands = form.operands(from_x, from_h, inside)
            after = _choose(real, form.cell(operands, before, _tanh), before)
            block.write(form.keep(operands, before), keeps, time)
            block.write(after.h, hs, time)
            block.share((after.h,), 1 - (index & 1))
            return after

        carry = block.read_tree(first)
        block.share((carry.h,), 0)
        block.write(lax.fori_loop(0, times, step, carry), final)

    # For each block, the columns of its units in all gates.
    w_HPBU = policy.cast(weights[0]).reshape(hidden_size, parts, blocks, _UNITS)
    w_BNH = w_HPBU.transpose(2, 1, 3, 0).reshape(blocks, parts * _UNITS, hidden_size)
    b_G = jnp.zeros_like(gates_TBG, shape=gates_TBG.shape[-1:]) if b_G is None else b_G
    inputs = (gates_TBG, b_G, weights[1:], carry, mask_TB, resets_TB)
    operands = [carry.h] * (parts + form.others)
    keeps = jax.eval_shape(lambda *each: form.keep(each, carry), *operands)
    outputs = (*_times((carry.h, keeps), times), carry)
    hs_TBH, (rows_TBG, extra), final = _run(body, w_BNH, 1, inputs, outputs)
    return (final, hs_TBH), gates_TBG if rows_TBG is None else rows_TBG, extra


def backward(
    gather: Callable[..., Any],
    policy: Products,
    reverse: bool,
    unroll: int | None,
    form: Elementwise,
    weights: Any,
    b_G: Array | None,
    rows_TBG: Array,
    extra: Any,
    previous_TBH: Array,
    mask_TB: Array | None,
    resets_TB: Array | None,
    dcarry: Any,
    dhs_TBH: Array,
) -> tuple[Any, Any]:
    """Same arguments and results as `gpu.backward`; `unroll` is ignored."""
    times, hidden_size = dhs_TBH.shape[0], dhs_TBH.shape[-1]
    parts, blocks = weights[0].shape[-1] // hidden_size, hidden_size // _UNITS

    def body(block: _Block, inputs: Any, outputs: Any) -> None:
        (dhs, prepared, dlast, *flags), (drows, dfirst) = inputs, outputs

        def step(index: Array, dafter: Any) -> Any:
            time = index if reverse else times - 1 - index
            real, reset = (block.flags(each, time) for each in flags)
            dafter = dafter._replace(h=dafter.h + block.read(dhs, time)[0])
            factors = block.read_tree(prepared, time)
            doperands, dread = form.backward(factors, _or_zeros(real, dafter, False), _same)
            added, others = doperands[:parts], doperands[parts:]
            block.write((_joined(added), others), drows, time)
            block.share(added, index & 1)
            (dh,) = block.product(index & 1)
            dbefore = dict(zip(form.reads, dread, strict=True))
            dbefore["h"] = dbefore.get("h", 0) + dh
            if real is not None:
                held = _or_zeros(real, dafter)._asdict()
                dbefore = {name: dbefore[name] + held[name] for name in held}
            return _or_zeros(reset, dafter._replace(**dbefore))

        block.write(lax.fori_loop(0, times, step, block.read_tree(dlast)), dfirst)

    w_BNG = policy.cast(weights[0]).reshape(blocks, _UNITS, parts * hidden_size)
    prepared = form.prepare(rows_TBG, extra, b_G, previous_TBH)
    inputs = (dhs_TBH, prepared, dcarry, mask_TB, resets_TB)
    outputs = ((rows_TBG, (dhs_TBH,) * form.others), dcarry)
    (dadds_TBG, dothers), dbefore = _run(body, w_BNG, parts, inputs, outputs)
    return dbefore, gather(policy, None, previous_TBH, dadds_TBG, *(dothers or (None,)))


class _Block(NamedTuple):
    """One block of a cluster, with its references.

    Attributes:
        cluster: index of its cluster; row: first row of the cluster; unit: first unit of the block.
        hidden_size: units of all blocks of the cluster.
        exchange: `[clusters, 2, R, nH]` in global memory, the double buffer.
        stage: `[n, R, U]` in shared memory, from which the block's part is copied there.
        weights: `[K, N, C]` in shared memory; terms: `[slots, R, C]`, chunks of `exchange`.
        loaded: one barrier per slot of `terms`; all_shared: barrier of the cluster.
    """

    cluster: Array
    row: Array
    unit: Array
    hidden_size: int
    exchange: Any
    stage: Any
    weights: Any
    terms: Any
    loaded: Any
    all_shared: Any

    def units(self, part: int) -> Any:
        """Slice of its units in one of the parts `[..., H]` of an axis."""
        return pl.ds(part * self.hidden_size + self.unit, _UNITS)

    def read(self, ref: Any, *time: Any) -> Blocks:
        """Its part of `[T, B, nH]`, `[B, nH]` or `[nH]`: n blocks `[R, U]`."""
        parts = map(self.units, range(ref.shape[-1] // self.hidden_size))
        if len(ref.shape) == 1:
            return tuple(_broadcast(_loaded(ref.at[part], 0), 1) for part in parts)
        rows = pl.ds(self.row, _ROWS)
        return tuple(_loaded(ref.at[(*time, rows, part)]) for part in parts)

    def read_tree(self, refs: Any, *time: Any) -> Any:
        """Its part of each array of a tree, `[R, nU]`."""
        return jax.tree.map(lambda ref: _joined(self.read(ref, *time)), refs)

    def flags(self, ref: Any, time: Any) -> Array | None:
        """Its rows of the flags `[T, B, 1]`, broadcast to `[R, U]`; None without flags."""
        if ref is None:
            return None
        return _broadcast(_loaded(ref.at[time, pl.ds(self.row, _ROWS), 0], 1), 0) > 0

    def write(self, values: Any, refs: Any, *time: Any) -> None:
        """Write its part `[R, nU]` of each `[T, B, nH]` or `[B, nH]`."""
        for value, ref in zip(jax.tree.leaves(values), jax.tree.leaves(refs), strict=True):
            for part, block in enumerate(_parts(value)):
                ref[(*time, pl.ds(self.row, _ROWS), self.units(part))] = block

    def share(self, values: Sequence[Array], slot: Any) -> None:
        """Write blocks `[R, U]` to the exchange, and wait until all blocks have done so."""
        for part, value in enumerate(values):
            self.stage[part] = value.astype(self.stage.dtype)
        plgpu.commit_smem()
        for part in range(len(values)):
            there = self.exchange.at[self.cluster, slot, :, self.units(part)]
            plgpu.copy_smem_to_gmem(self.stage.at[part], there)
        plgpu.wait_smem_to_gmem(0)
        plgpu.barrier_arrive(self.all_shared)
        plgpu.barrier_wait(self.all_shared)

    def product(self, slot: Any) -> Blocks:
        """The exchanged `[R, nH]` times this block's weights, as blocks `[R, U]`."""
        chunks, columns, width = self.weights.shape
        slots = self.terms.shape[0]

        def load(chunk: Any) -> None:
            shared = self.exchange.at[self.cluster, slot, :, pl.ds(chunk * width, width)]
            at = lax.rem(chunk, slots)
            plgpu.copy_gmem_to_smem(shared, self.terms.at[at], self.loaded.at[at])

        def add_up(sums: Any) -> Array:
            @partial(lax.fori_loop, 0, chunks, init_val=None)
            def _(chunk: Array, nothing: None) -> None:
                at = lax.rem(chunk, slots)
                plgpu.barrier_wait(self.loaded.at[at])
                plgpu.wgmma(sums, self.terms.at[at], self.weights.at[chunk].transpose((1, 0)))

                @pl.when(chunk + slots < chunks)
                def _() -> None:
                    plgpu.wgmma_wait(0)
                    load(chunk + slots)

            found: Array = sums[...]
            return found

        for chunk in range(slots):
            load(chunk)
        accumulator = plgpu.WGMMAAccumulatorRef((_ROWS, columns), jnp.float32)
        return _parts(pl.run_scoped(add_up, accumulator))


def _run(body: Callable[..., None], w_BNK: Array, shared: int, inputs: Any, outputs: Any) -> Any:
    """Run a kernel and return its outputs.

    Args:
        body: (block, references of the inputs, references of the outputs) -> None, run per block.
        w_BNK: transposed weights of each block.
        shared: number of arrays `[B, H]` exchanged per step.
        inputs: tree of arrays; their batch axis is the last but one (last for flags `[T, B]`).
        outputs: tree of arrays or structs with the shapes and dtypes of the outputs.
    """
    blocks, columns, _ = w_BNK.shape
    hidden_size, dtype, batch = blocks * _UNITS, w_BNK.dtype, jax.tree.leaves(outputs)[0].shape[-2]
    rows = max(batch, _ROWS)
    # As many chunks in flight as fit into shared memory beside the weights.
    width, slots = (hidden_size, 4) if dtype.itemsize < 4 else (hidden_size // 2, 2)
    w_BKNC = w_BNK.reshape(blocks, columns, -1, width).transpose(0, 2, 1, 3)
    chunks = w_BKNC.shape[1]
    slots = min(slots, chunks)
    given, in_tree = jax.tree.flatten(jax.tree.map(partial(_filled, rows), inputs))
    types = jax.eval_shape(lambda: jax.tree.map(partial(_filled, rows), _zeros(outputs)))
    made, out_tree = jax.tree.flatten(types)
    clusters = -(-rows // _ROWS)
    exchange = jax.ShapeDtypeStruct((clusters, 2, _ROWS, shared * hidden_size), dtype)

    def kernel(w_ref: Any, *refs: Any, weights_loaded: Any, **scratch: Any) -> None:
        cluster, at = lax.axis_index("cluster"), lax.axis_index("block")
        for chunk in range(chunks):
            to = scratch["weights"].at[chunk]
            plgpu.copy_gmem_to_smem(w_ref.at[at * chunks + chunk], to, weights_loaded)
        plgpu.barrier_wait(weights_loaded)
        # The last cluster recomputes some rows of the one before it, with the same results.
        row = jnp.minimum(cluster * _ROWS, rows - _ROWS)
        block = _Block(cluster, row, at * _UNITS, hidden_size, refs[-1], **scratch)
        ins, outs = refs[: len(given)], refs[len(given) : -1]
        body(block, jax.tree.unflatten(in_tree, ins), jax.tree.unflatten(out_tree, outs))

    *found, _ = plgpu.kernel(
        kernel,
        out_type=[*made, exchange],
        scratch_types={
            "weights_loaded": plgpu.Barrier(num_arrivals=chunks),
            "weights": plgpu.SMEM(w_BKNC.shape[1:], dtype),
            "stage": plgpu.SMEM((shared, _ROWS, _UNITS), dtype),
            "terms": plgpu.SMEM((slots, _ROWS, width), dtype),
            "loaded": plgpu.Barrier(num_barriers=slots),
            "all_shared": plgpu.ClusterBarrier(collective_axes=("block",)),
        },
        grid=(clusters,),
        grid_names=("cluster",),
        cluster=(blocks,),
        cluster_names=("block",),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
    )(w_BKNC.reshape(-1, columns, width), *given)
    return jax.tree.map(lambda a: a[..., :batch, :], jax.tree.unflatten(out_tree, found))


def _filled(rows: int, array: Array) -> Array:
    """Pad the batch with zeros to this many rows; flags become integers `[T, B, 1]`."""
    if array.dtype == jnp.bool_:
        array = array[..., None].astype(jnp.int32)
    if array.ndim == 1 or array.shape[-2] == rows:
        return array
    return jnp.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, rows - array.shape[-2]), (0, 0)])


def _times(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((times, *a.shape), a.dtype), tree)


def _loaded(ref: Any, reduced: int | None = None) -> Array:
    """Load in the register layout of wgmma, with the `reduced` axis missing."""
    layout: Any = plgpu.Layout.WGMMA
    load: Any = plgpu.load  # its signature differs in jax 0.10
    found: Array = load(
        ref, layout=layout if reduced is None else layout.reduce(reduced), optimized=False
    )
    return found


def _broadcast(line: Array, axis: int) -> Array:
    return lax.broadcast_in_dim(line, (_ROWS, _UNITS), (axis,))


def _parts(joined: Array) -> Blocks:
    """The blocks `[R, U]` of `[R, nU]`."""
    return blocks_of(joined, joined.shape[1] // _UNITS)


def _joined(blocks: Sequence[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=-1)


def _choose(flags: Array | None, chosen: Any, otherwise: Any) -> Any:
    if flags is None:
        return chosen
    return jax.tree.map(lambda a, b: jnp.where(flags, a, b), chosen, otherwise)


def _or_zeros(flags: Array | None, tree: Any, zero: bool = True) -> Any:
    """The tree, with zeros where the flags equal `zero`."""
    if flags is None:
        return tree
    return _choose(flags, _zeros(tree), tree) if zero else _choose(flags, tree, _zeros(tree))


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _tanh(x: Array) -> Array:
    """Branch-free tanh with an absolute error below 1e-6, also close to saturation."""
    divisor = 1 + lax.exp2(x * (-2 * math.log2(math.e)))
    return 2 * lax.rsqrt(divisor * divisor) - 1


def _same(array: Array) -> Array:
    return array

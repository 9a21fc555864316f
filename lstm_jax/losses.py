"""Cross-entropy that never holds all logits at once, also with the vocabulary split over devices.

Shapes: T time, B batch, H hidden size, V vocabulary, K time steps per chunk.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lstm_jax.cells import look_up
from lstm_jax.precision import Products
from lstm_jax.sharding import vary_as

_CPU_CHUNK_LOGITS, _CHUNK_LOGITS = 1_700_000, 1 << 26


class OutputParams(NamedTuple):
    """Weights of the output layer: `w [H, V]`, `b [V]`."""

    w: Array
    b: Array


class TokenSums(NamedTuple):
    """Sums over the tokens of a batch; add them up over batches, then divide for means.

    Attributes:
        loss: sum of weight times negative log-likelihood, in nats.
        correct: sum of the weights where the most likely token (the first, if tied) is the target.
        weight: sum of the weights, which is the number of real tokens.

    Examples:
        >>> sums = lstm_jax.losses.TokenSums(loss=jnp.array(5.0), correct=jnp.array(2.0), weight=4)
        >>> float(sums.loss / sums.weight)  # the mean, in nats per token
        1.25
    """

    loss: Array
    correct: Array
    weight: Array


class TokenScores(NamedTuple):
    """Loss and hit of each token, without gradients; 0 where there is no token.

    Attributes:
        loss: `[T, B]`, negative log-likelihood in nats.
        correct: `[T, B]`, 1 where the most likely token (the first, if tied) is the target.

    Examples:
        >>> config = lstm_jax.LanguageModelConfig(hidden_size=4)
        >>> model = lstm_jax.LanguageModel(config, vocabulary_size=5)
        >>> tokens = jnp.zeros((10, 2), jnp.int32)
        >>> _, scores, _ = model.token_scores(model.init(jax.random.key(0)), None, tokens, tokens)
        >>> scores.loss.shape
        (10, 2)
    """

    loss: Array
    correct: Array


def chunk_times(
    times: int, batch_size: int, vocabulary_size: int, backend: str | None = None
) -> int:
    """Time steps per chunk of logits: as many as suit the device, and at most half of them.

    On CPU a chunk has up to 1.7 million logits: of 0.2 to 3 million, 1.5 to 2 million were fastest
    on two cores with vocabularies of 6,544 and 8,009 tokens. On GPU or TPU it has up to 256 MB of
    float32 (not measured): too large for a cache, but small products leave such devices idle. The
    default backend at trace time decides; exported programs keep their chunk size.
    """
    most = _CPU_CHUNK_LOGITS if (backend or jax.default_backend()) == "cpu" else _CHUNK_LOGITS
    affordable = most // max(1, batch_size * vocabulary_size)
    return max(1, min(affordable, times // 2))


def fused_cross_entropy(
    policy: Products,
    chunk: int | None,
    params: OutputParams,
    hs: Array,
    targets: Array,
    mask: Array | None,
    axis: str | None = None,
) -> tuple[TokenSums, TokenScores]:
    """Softmax cross-entropy of the output layer's logits, summed over the real tokens.

        loss = sum_{t,b} mask[t,b] (logsumexp_v(z[t,b,v]) - z[t,b,targets[t,b]]),  z = hs w + b

    The logits are formed chunk by chunk along time and never exist all at once; the forward pass
    also forms the gradient of each chunk. Reverse mode only, of any order.

    Inside `shard_map`, `axis` splits the vocabulary: each device computes its slice of the logits
    for the rows of all devices along the axis. Hidden states, their gradients and a few numbers per
    token are exchanged; weights are not.

    Args:
        policy: dtypes of the products; the softmax uses the accumulator's.
        chunk: time steps per chunk; None chooses.
        params: the output layer; with `axis`, this device's slice `w [H, V/n]`, `b [V/n]`.
        hs: `[T, B, H]`; with `axis`, this device's rows.
        targets: integers `[T, B]`. One outside [0, V), such as -100, is ignored, as if masked.
        mask: bool `[T, B]`, True = a real token, or None. It applies to sums and divisor.
        axis: mesh axis of n devices along which the vocabulary is split, or None.

    Returns:
        Scalar sums in the accumulator's dtype, of which only `loss` has a gradient, and the terms
        of each token. With `axis`, the sums cover all its devices' rows and are equal on each.

    Examples:
        >>> from lstm_jax.losses import OutputParams, fused_cross_entropy
        >>> policy = lstm_jax.precision.products("float32", jnp.float32)
        >>> output = OutputParams(w=jnp.zeros((4, 5)), b=jnp.zeros(5))
        >>> hs, targets = jnp.ones((10, 2, 4)), jnp.ones((10, 2), jnp.int32)
        >>> sums, _ = fused_cross_entropy(policy, None, output, hs, targets, None)
        >>> bool(jnp.isclose(sums.loss / sums.weight, jnp.log(5)))
        True
    """
    if axis is None:
        return _fused(policy, chunk, axis, vary_as(hs, params), hs, targets, mask)
    if mask is not None:
        hs = jnp.where(mask[..., None], hs, 0)
        targets = jnp.where(mask, targets.astype(jnp.int32), -1)
    hs_all, targets_all = (lax.all_gather(a, axis, axis=1, tiled=True) for a in (hs, targets))
    sums, scores = _fused(policy, chunk, axis, vary_as(hs, params), hs_all, targets_all, None)
    rows = hs.shape[1]
    first = lax.axis_index(axis) * rows
    return sums, jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, first, rows, 1), scores)


def look_up_split(table: Array, ids: Array, axis: str) -> Array:
    """Look up `table[ids]` in a table whose rows are split among devices; inside `shard_map`.

    Each device looks up all devices' ids in its slice; a reduce-scatter returns each its rows.

    Args:
        table: this device's slice of the rows, `[V / n, E]`.
        ids: this device's integers `[T, B]` in [0, V); any other integer gives a row of zeros.
        axis: mesh axis of n devices.

    Returns:
        `[T, B, E]`.

    Examples:
        >>> mesh = lstm_jax.sharding.data_mesh(jax.device_count())
        >>> rows = jax.shard_map(
        ...     lambda table, ids: lstm_jax.losses.look_up_split(table, ids, "data"),
        ...     mesh=mesh, in_specs=(jax.P("data"), jax.P(None, "data")),
        ...     out_specs=jax.P(None, "data"))
        >>> rows(jnp.arange(8.0)[:, None], jnp.array([[7, 2, 5, 5]]))[0, :, 0]
        Array([7., 2., 5., 5.], dtype=float32)
    """
    size = table.shape[0]
    ids = lax.all_gather(ids.astype(jnp.int32), axis, axis=1, tiled=True)
    ids -= lax.axis_index(axis) * size
    is_here = (ids >= 0) & (ids < size)
    rows = jnp.where(is_here[..., None], look_up(table, ids), 0)
    return lax.psum_scatter(rows, axis, scatter_dimension=1, tiled=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(
    policy: Products, chunk: int | None, axis: str | None, *inputs: Any
) -> tuple[TokenSums, TokenScores]:
    return _sums(policy, chunk, axis, *inputs, with_gradient=False)[0]


def _backward(
    policy: Products,
    chunk: int | None,
    axis: str | None,
    gradients: tuple[OutputParams, Array],
    cotangents: tuple[TokenSums, TokenScores],
) -> tuple[OutputParams, Array, None, None]:
    dloss = cotangents[0].loss
    dparams, dhs_TBH = jax.tree.map(lambda g: g * dloss.astype(g.dtype), gradients)
    return dparams, dhs_TBH, None, None


def _sums(
    policy: Products,
    chunk: int | None,
    axis: str | None,
    params: OutputParams,
    hs_TBH: Array,
    targets_TB: Array,
    mask_TB: Array | None,
    *,
    with_gradient: bool,
) -> tuple[tuple[TokenSums, TokenScores], Any]:
    times, batch_size, _ = hs_TBH.shape
    w_HV = policy.cast(params.w)
    chunk = max(1, min(times, chunk or chunk_times(times, batch_size, w_HV.shape[1])))

    def one_chunk(
        inputs: tuple[Array, Array, Array | None],
    ) -> tuple[tuple[TokenSums, OutputParams | None], tuple[TokenScores, Array | None]]:
        hs_KBH, targets_KB, mask_KB = inputs
        hs_KBH = policy.cast(hs_KBH)
        if mask_KB is not None:
            # Select: multiplying by 0 would keep a masked NaN.
            hs_KBH = jnp.where(mask_KB[..., None], hs_KBH, 0)
        logits_KBV = policy.einsum("tbh,hv->tbv", hs_KBH, w_HV)
        logits_KBV += params.b.astype(policy.accumulate)[None, None]
        sums, scores_KB, dlogits_KBV = _chunk_sums(logits_KBV, targets_KB, mask_KB, axis)
        if not with_gradient:
            return (sums, None), (scores_KB, None)
        db_V = dlogits_KBV.sum((0, 1))
        dlogits_KBV = policy.cast(dlogits_KBV)
        dparams = OutputParams(policy.weight_gradient(hs_KBH, dlogits_KBV), db_V)
        dhs_KBH = policy.einsum("tbv,hv->tbh", dlogits_KBV, w_HV)
        return (sums, dparams), (scores_KB, dhs_KBH.astype(hs_TBH.dtype))

    def add_chunk(totals: Any, inputs: Any) -> tuple[Any, Any]:
        found, each = one_chunk(inputs)
        return jax.tree.map(jnp.add, totals, found), each

    # The totals start from the first chunk, which takes the remainder if `chunk` does not divide T.
    inputs = (hs_TBH, targets_TB, mask_TB)
    odd = times % chunk or chunk
    totals, each = one_chunk(jax.tree.map(lambda a: a[:odd], inputs))
    if odd < times:
        chunks = (times - odd) // chunk
        rest = jax.tree.map(lambda a: a[odd:].reshape(chunks, chunk, *a.shape[1:]), inputs)
        totals, each_rest = lax.scan(add_chunk, totals, rest)
        each = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b.reshape(times - odd, *a.shape[1:])]), each, each_rest
        )
    (sums, dparams), (scores_TB, dhs_TBH) = totals, each
    if axis is not None:  # `psum` also marks the type as equal on all its devices
        one_device = jnp.where(lax.axis_index(axis) == 0, jnp.stack(sums), 0)
        sums = TokenSums(*lax.psum(one_device, axis))
    if not with_gradient:
        return (sums, scores_TB), None
    dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)
    return (sums, scores_TB), (dparams, dhs_TBH)


_fused.defvjp(partial(_sums, with_gradient=True), _backward)


def _chunk_sums(
    logits_KBV: Array, targets_KB: Array, mask_KB: Array | None, axis: str | None
) -> tuple[TokenSums, TokenScores, Array]:
    """Sums of a chunk, their terms per token, and the gradient of the loss by the logits."""
    dtype, size, first, slices = logits_KBV.dtype, logits_KBV.shape[-1], jnp.int32(0), 1
    if axis is not None:
        first, slices = lax.axis_index(axis) * size, lax.axis_size(axis)
    ids_11V = jnp.arange(size)[None, None] + first
    targets_KB = targets_KB.astype(ids_11V.dtype)
    is_token_KB = (targets_KB >= 0) & (targets_KB < size * slices)
    weight_KB = (is_token_KB if mask_KB is None else is_token_KB & mask_KB).astype(dtype)
    highest_KB = lax.stop_gradient(logits_KBV.max(-1))
    exponentials_KBV = jnp.exp(logits_KBV - highest_KB[..., None])
    total_KB = exponentials_KBV.sum(-1)
    targets_KB1 = targets_KB[..., None]
    places_KB1 = targets_KB1 - first
    target_logit_KB = jnp.take_along_axis(logits_KBV, places_KB1, axis=-1, mode="clip")[..., 0]
    # Not `argmax`: on CPU, XLA's loop for it takes six times as long as everything else here.
    is_highest_KBV = logits_KBV == highest_KB[..., None]
    has_earlier_KB = jnp.any(is_highest_KBV & (ids_11V < targets_KB1), axis=-1)
    if axis is not None:
        is_here_KB = (targets_KB >= first) & (targets_KB < first + size)
        target_logit_KB = jnp.where(is_here_KB, target_logit_KB, 0)
        own_highest_KB, found = highest_KB, (highest_KB, total_KB, target_logit_KB, has_earlier_KB)
        highest_KB, total_KB, target_logit_KB, has_earlier_KB = _combine_slices(axis, *found)
        exponentials_KBV *= jnp.exp(own_highest_KB - highest_KB)[..., None]
    loss_KB = jnp.log(total_KB) + highest_KB - target_logit_KB
    is_target_KBV = ids_11V == targets_KB1
    scaled_KBV = exponentials_KBV * (weight_KB / total_KB)[..., None]
    dlogits_KBV = scaled_KBV - jnp.where(is_target_KBV, weight_KB[..., None], 0)
    correct_KB = (target_logit_KB == highest_KB) & ~has_earlier_KB
    scores_KB = TokenScores(
        jnp.where(weight_KB == 0, 0, loss_KB * weight_KB), jnp.where(correct_KB, weight_KB, 0)
    )
    sums = TokenSums(jnp.sum(scores_KB.loss), jnp.sum(scores_KB.correct), jnp.sum(weight_KB))
    return sums, scores_KB, dlogits_KBV


def _combine_slices(
    axis: str, highest_KB: Array, total_KB: Array, target_logit_KB: Array, has_earlier_KB: Array
) -> tuple[Array, Array, Array, Array]:
    """Combine what each slice of the vocabulary found, with one all-gather per chunk."""
    found = jnp.stack(
        [highest_KB, total_KB, target_logit_KB, has_earlier_KB.astype(total_KB.dtype)]
    )
    each_4SKB = jnp.moveaxis(lax.all_gather(found, axis), 0, 1)
    highest_SKB, total_SKB, target_logit_SKB, has_earlier_SKB = each_4SKB
    highest_KB = lax.stop_gradient(highest_SKB.max(0))
    total_KB = (total_SKB * jnp.exp(highest_SKB - highest_KB[None])).sum(0)
    has_earlier_KB = jnp.any((has_earlier_SKB > 0) & (highest_SKB == highest_KB[None]), axis=0)
    return highest_KB, total_KB, target_logit_SKB.sum(0), has_earlier_KB

"""The classifier: Keras's values, pooling, padding, filler rows, frozen vectors, dropout."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    assert_near,
    assert_same_bits,
    cases,
    looped,
    normals_like,
)
from jax import random
from recorded import Arrays, Peer, of_kind

from lstm_jax import cells
from lstm_jax.classifier import Classifier, ClassifierConfig, ClassifierParams
from lstm_jax.interop import layers_from_keras
from lstm_jax.losses import OutputParams, TokenSums
from lstm_jax.stack import Directions

PEERS = ("keras", "jax")
T, B, E, H, F, V = 8, 4, 3, 5, 4, 11

# The last row has no real step.
LENGTHS = np.array([T, 3, 1, 0])
MISSING = np.array([0, 2, 5, 6])
FRONT = np.arange(T)[:, None] >= T - LENGTHS

OPTIONS: dict[str, dict[str, Any]] = {
    "lstm-last-frozen": {"layers": 2, "frozen_embedding": True},
    "gru-max-both": {"cell": "gru", "pooling": "max", "bidirectional": True},
    "lstm-mean-both-frozen": {"pooling": "mean", "bidirectional": True, "frozen_embedding": True},
    "gru-last-both-no-dense": {"cell": "gru", "layers": 2, "bidirectional": True, "dense_size": 0},
    "gru-last-missing": {"cell": "gru", "frozen_embedding": True, "learn_missing": True},
}
configs = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(dtype: Any = jnp.float64, **options: Any) -> Any:
    """A model, and its parameters with no bias at zero."""
    sizes = {"embedding_size": E, "hidden_size": H, "dense_size": F}
    model = Classifier(ClassifierConfig(**{**sizes, **options}), V)
    params = normals_like(1, jax.eval_shape(partial(model.init, dtype=dtype), random.key(0)))
    if model.config.learn_missing:
        params = params._replace(vectors=params.vectors.at[MISSING].set(0))
    return model, params


def batch(seed: int = 0, mask: Any = FRONT) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, mask.shape, np.int32)
    return tokens, np.arange(mask.shape[1]) % 2, mask


@partial(jax.jit, static_argnums=0)
def logits(model: Classifier, params: Any, tokens: Any, **options: Any) -> Any:
    return model.logits(params, tokens, **options)


@partial(jax.jit, static_argnums=0)
def sums_and_gradients(
    model: Classifier, params: Any, tokens: Any, labels: Any, **options: Any
) -> Any:
    def loss(params: Any) -> Any:
        sums = model.sums(params, tokens, labels, **options)
        return sums.loss, sums

    (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return sums, gradients


def kerass(form: str, bidirectional: bool) -> Arrays:
    """A classifier of Keras's own: logits, loss and gradients, and all that they are of.

    Token 0 pads in front, as Keras's `mask_zero` reads it.
    """
    import keras

    kind = keras.layers.LSTM if form == "lstm" else keras.layers.GRU
    wrap = keras.layers.Bidirectional if bidirectional else (lambda layer: layer)
    theirs = keras.Sequential(
        [
            keras.layers.Embedding(V, E, mask_zero=True, trainable=False),
            wrap(kind(H, return_sequences=True)),
            wrap(kind(H)),
            keras.layers.Dense(F, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    theirs.build((B, T))
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((V, E)).astype(np.float32)
    theirs.layers[0].set_weights([vectors])
    weights = [
        0.5 * rng.standard_normal(variable.shape).astype(np.float32)
        for variable in theirs.trainable_variables
    ]
    states = [variable.value for variable in theirs.non_trainable_variables]
    tokens, labels, mask = batch()
    tokens = np.where(mask, np.maximum(tokens, 1), 0)
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss_of(weights: Any) -> Any:
        z, _ = theirs.stateless_call(weights, states, tokens.T)
        return cross_entropy(labels[:, None], z), z[:, 0]

    (loss, expected), gradients = loss_of(weights)
    found = {"tokens": tokens, "labels": labels, "mask": mask, "vectors": vectors}
    found |= {"loss": loss, "logits": expected}
    for name, arrays in (("weight", weights), ("dweight", gradients)):
        found |= {f"{name} {index}": array for index, array in enumerate(arrays)}
    return found


@pytest.mark.parametrize(
    ("form", "bidirectional"), [("lstm", False), ("lstm", True), ("gru_after", False)]
)
def test_logits_loss_and_gradients_are_kerass(peer: Peer, form: str, bidirectional: bool) -> None:
    their = peer(str((form, bidirectional)), lambda: kerass(form, bidirectional))
    model, _ = build(
        jnp.float32,
        cell=form.partition("_")[0],
        layers=2,
        bidirectional=bidirectional,
        frozen_embedding=True,
    )

    def ours(kind: str) -> Any:
        """Of arrays, or of gradients: of two biases that are added, the sum's then counts once."""
        numbered = list(of_kind(their, kind).values())
        if kind == "dweight":
            twice = np.isin(np.arange(6 * H) // H, (3, 4)).reshape(2, 3 * H)
            numbered = [np.where(twice, 0, a) if a.shape == twice.shape else a for a in numbered]
        *stack, dense_w, dense_b, w, b = numbered
        half = len(stack) // 2
        layers = layers_from_keras((stack[:half], stack[half:]))
        dense, output = OutputParams(dense_w, dense_b), OutputParams(w, b)
        return ClassifierParams(None, layers, dense, output, jnp.asarray(their["vectors"]))

    params, gradients = ours("weight"), ours("dweight")
    gradients = gradients._replace(vectors=jnp.zeros_like(gradients.vectors))
    tokens, mask = their["tokens"], their["mask"]
    assert_near(logits(model, params, tokens, mask=mask), their["logits"], 1e-5)
    sums, found = sums_and_gradients(model, params, tokens, their["labels"], mask=mask)
    assert_near(sums.loss / sums.weight, their["loss"], 1e-5)
    means = jax.tree.map(lambda gradient: gradient / sums.weight, found)
    assert_near(means, gradients, 1e-5)


def naive_logit(model: Any, params: Any, xs_TE: Any) -> float:
    """One sequence of real steps only: layer by layer, each direction in a Python loop."""
    config, finals, hs_TH = model.config, np.zeros(model.config.output_size), xs_TE
    for layer in params.layers if len(xs_TE) else ():
        ends, outputs = [], []
        for index, cell in enumerate(layer if isinstance(layer, Directions) else (layer,)):
            step, zero, way = cells.cell_of(cell).step, cells.zero_carry(cell, 1), 1 - 2 * index
            carry, ys = looped(step, cell, zero, hs_TH[::way, None])
            ends.append(carry.h[0])
            outputs.append(ys[::way, 0])
        finals, hs_TH = np.concatenate(ends), np.concatenate(outputs, axis=-1)
    if config.pooling == "last" or not len(xs_TE):
        features = finals
    else:
        features = hs_TH.max(0) if config.pooling == "max" else hs_TH.mean(0)
    if params.dense is not None:
        features = np.maximum(0, features @ params.dense.w + params.dense.b)
    return float((features @ params.output.w + params.output.b)[0])


@configs
def test_logits_are_those_of_the_real_steps_alone(float64: None, options: dict[str, Any]) -> None:
    scattered = np.random.default_rng(3).permuted(FRONT, axis=0)
    for backend, mask in (("scan", FRONT), ("scan", scattered), ("reference", None)):
        model, params = build(backend=backend, **options)
        table = np.asarray(params.embedding if params.vectors is None else params.vectors)
        if model.config.learn_missing:
            table = table.copy()
            table[MISSING] = params.embedding[MISSING]
        tokens, _, _ = batch()
        real = np.ones((T, B), bool) if mask is None else mask
        expected = [naive_logit(model, params, table[tokens[real[:, b], b]]) for b in range(B)]
        found = logits(model, params, tokens, mask=mask)
        assert_near(found, np.array(expected), 1e-12)


@configs
def test_gradients_depend_neither_on_padding_nor_on_the_backend(
    float64: None, options: dict[str, Any]
) -> None:
    options = {**options, "dropout": 0.25, "dropout_place": "inputs"}
    tokens, labels, _ = batch(mask=np.ones((T, B), bool))
    padded = np.pad(tokens, ((3, 0), (0, 0)), constant_values=1)
    in_front = np.broadcast_to(np.arange(T + 3)[:, None] >= 3, padded.shape)
    given = [("scan", tokens, None), ("scan", padded, in_front), ("reference", padded, in_front)]
    found = []
    for backend, each, mask in given:
        model, params = build(backend=backend, **options)
        drawn = {"mask": mask, "dropout_key": random.key(2)}
        found.append(sums_and_gradients(model, params, each, labels, **drawn))
    for each in found[1:]:
        assert_near(each, found[0], 1e-12)


@cases(
    "options, backend, masked",
    [*((each, "scan", True) for each in OPTIONS.values()), ({}, "reference", False)],
    *((each, "scan", True) for each in list(OPTIONS.values())[:2]),
)
def test_filler_rows_change_neither_sums_nor_gradients(
    float64: None, options: dict[str, Any], backend: str, masked: bool
) -> None:
    """Nor if the filler's word is NaN; the word is in no other row."""
    model, params = build(backend=backend, **options)
    tokens, labels, mask = batch()
    tokens = np.minimum(tokens, V - 2)
    field = "embedding" if params.vectors is None else "vectors"
    params = params._replace(**{field: getattr(params, field).at[V - 1].set(jnp.nan)})
    given = (tokens, labels, mask)
    filled = [
        np.concatenate([array, np.full((*array.shape[:-1], 2), filler, array.dtype)], axis=-1)
        for array, filler in zip(given, (V - 1, 1, True), strict=True)
    ]
    found, expected = (
        sums_and_gradients(model, params, *each[:2], mask=each[2] if masked else None, **more)
        for each, more in ((filled, {"weights": np.repeat([1.0, 0.0], [B, 2])}), (given, {}))
    )
    assert math.isfinite(expected[0].loss)
    assert_near(found, expected, 1e-12)


def test_weights_weigh_sums_and_divisor(float64: None) -> None:
    """And a label that is neither weighs nothing."""
    model, params = build()
    tokens, labels, mask = batch()
    weights = np.array([1.0, 2.0, 0.0, 0.5])
    expected = sums_and_gradients(model, params, tokens, labels, mask=mask, weights=weights)
    z = np.asarray(logits(model, params, tokens, mask=mask))
    sums = weights @ (np.log1p(np.exp(z)) - labels * z), weights @ ((z > 0) == labels)
    assert_near(expected[0], TokenSums(*sums, weights.sum()), 1e-12)
    given = np.where(weights == 0, 1, weights)
    for other in (-100, 2):
        others = np.where(weights == 0, other, labels)
        found = sums_and_gradients(model, params, tokens, others, mask=mask, weights=given)
        assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
def test_no_times_are_pooled_to_zeros(pooling: str) -> None:
    model, params = build(jnp.float32, pooling=pooling, bidirectional=True, dense_size=0)
    for mask in (None, np.zeros((0, B), bool)):
        found = logits(model, params, np.zeros((0, B), np.int32), mask=mask)
        assert_same_bits(found, jnp.repeat(params.output.b, B))


@pytest.mark.parametrize("z", [0.0, 1.0, -30.0, 1000.0, -1000.0])
@pytest.mark.parametrize("label", [0, 1])
def test_cross_entropy_of_any_logit_is_exact(z: float, label: int) -> None:
    model, params = build(jnp.float32)
    output = OutputParams(jnp.zeros_like(params.output.w), jnp.full(1, z, jnp.float32))
    tokens, _, _ = batch()
    sums, gradients = sums_and_gradients(
        model, params._replace(output=output), tokens, np.full(B, label)
    )
    distance = -z if label else z
    loss = math.log1p(math.exp(-abs(z))) + max(distance, 0)
    sigmoid = 0.5 * (1 + math.tanh(z / 2))
    assert sums.loss == pytest.approx(B * loss, rel=1e-6, abs=1e-12)
    assert gradients.output.b[0] == pytest.approx(B * (sigmoid - label), rel=1e-6, abs=1e-12)
    assert sums.correct == B * ((z > 0) == bool(label))


@pytest.mark.parametrize(
    ("options", "learnt"),
    [
        ({}, range(V)),
        ({"frozen_embedding": True}, ()),
        ({"frozen_embedding": True, "learn_missing": True}, MISSING),
    ],
)
def test_words_that_are_read_and_learnt_have_a_gradient_and_no_others(
    float64: None, options: dict[str, Any], learnt: Any
) -> None:
    tokens, labels, mask = batch()
    model, params = build(**options)
    sums, gradients = sums_and_gradients(model, params, tokens, labels, mask=mask)
    words = np.arange(V)
    read = np.isin(words, tokens[mask])
    assert 0 < read.sum() < V
    if params.vectors is not None:
        np.testing.assert_array_equal(gradients.vectors, 0)
    if params.embedding is not None:
        moved = np.any(gradients.embedding, axis=1)
        np.testing.assert_array_equal(moved, read & np.isin(words, learnt))
    # The same values, wherever the table is kept.
    tables = [0 if table is None else table for table in (params.embedding, params.vectors)]
    whole = np.where(np.isin(words, learnt)[:, None], *tables)
    trained, _ = build()
    params = params._replace(embedding=jnp.asarray(whole), vectors=None)
    found, _ = sums_and_gradients(trained, params, tokens, labels, mask=mask)
    assert_near(found, sums, 0)


def test_dropout_needs_a_key_and_a_key_decides_it() -> None:
    model, params = build(jnp.float32, dropout=0.25, layers=2)
    plain, _ = build(jnp.float32, layers=2, dense_dropout=0.0)
    tokens, _, mask = batch()
    first, again, other, without = (
        logits(model, params, tokens, mask=mask, dropout_key=key)
        for key in (*map(random.key, (0, 0, 1)), None)
    )
    assert_same_bits(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, without)
    # With nothing to drop a key changes nothing.
    for key in (None, random.key(0)):
        assert_same_bits(logits(plain, params, tokens, mask=mask, dropout_key=key), without)


def test_word_dropout_reads_zeros_for_whole_words(float64: None) -> None:
    """With one word a sequence there are two logits: the word's, and that of zeros."""
    model, params = build(frozen_embedding=True, word_dropout=0.25, dense_dropout=0.0, cell="gru")
    tokens = np.full((1, 4000), 3, np.int32)
    plain, zeros = (
        float(logits(model, params._replace(vectors=each), tokens[:, :1])[0])
        for each in (params.vectors, jnp.zeros_like(params.vectors))
    )
    found = logits(model, params, tokens, dropout_key=random.key(3))
    is_kept = np.isclose(found, plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(found)[~is_kept], zeros, rtol=0, atol=1e-12)
    # Five standard errors of a share of 4,000 draws.
    assert abs((~is_kept).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_dense_dropout_keeps_the_mean_of_the_logits() -> None:
    """The logit is linear in what is dropped, and there are 2^F ways to drop it."""
    model, params = build(jnp.float32, dense_dropout=0.5)
    tokens, _, _ = batch()
    keys = random.split(random.key(5), 4000)
    draw = jax.jit(jax.vmap(lambda key: model.logits(params, tokens, dropout_key=key)))
    drawn = np.asarray(draw(keys), np.float64)
    error = drawn.std(0) / math.sqrt(len(keys))
    assert (error > 1e-3).any()
    off = np.abs(drawn.mean(0) - logits(model, params, tokens))
    assert (off <= 5 * error + 1e-5).all()
    assert all(len(np.unique(column.round(4))) <= 2**F for column in drawn.T)


def test_bfloat16_products_keep_float32_sums_and_gradients() -> None:
    results = []
    for compute_dtype in ("bfloat16", "float32"):
        model, params = build(jnp.float32, compute_dtype=compute_dtype, bidirectional=True)
        tokens, labels, mask = batch()
        results.append(sums_and_gradients(model, params, tokens, labels, mask=mask))
        assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    assert_near(*results, 0.1)
    assert results[0][0].loss != results[1][0].loss


def count(**options: Any) -> int:
    model = Classifier(ClassifierConfig(layers=2, hidden_size=64, **options), 10_000)
    learnt = jax.eval_shape(model.init, random.key(0))._replace(vectors=None)
    return sum(leaf.size for leaf in jax.tree.leaves(learnt))


def test_parameters_are_as_many_as_published_models_have() -> None:
    assert count(frozen_embedding=True) == 29_440 + 33_024 + 2_080 + 33 == 64_577
    assert count() == count(frozen_embedding=True, learn_missing=True) == 64_577 + 10_000 * 50
    both = 2 * 29_440 + 2 * (4 * 64 * (128 + 64 + 1))
    frozen = {"frozen_embedding": True, "bidirectional": True}
    assert count(**frozen) == both + (128 * 32 + 32) + 33
    assert count(dense_size=0, **frozen) == both + 128 + 1
    missing, _ = build(jnp.float32, frozen_embedding=True, learn_missing=True)
    assert not missing.init(random.key(0)).embedding.any()

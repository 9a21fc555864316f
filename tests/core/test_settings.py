"""JAX's own switches: whatever they refuse or look for, the library does without it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import UNITWISE_FORMS, fast, init
from jax import random

from lstm_jax import cells, sampling
from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.losses import OutputParams, fused_cross_entropy
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.precision import products
from lstm_jax.recurrence import layer
from lstm_jax.sampling import beams, decode, scoring
from lstm_jax.sampling.filters import choose, filtered, make_filters
from lstm_jax.sampling.stops import make_stops

T, B, D, H, V = 5, 3, 4, 2, 9
MASK = np.random.default_rng(0).random((T, B)) < 0.7
TOKENS = np.random.default_rng(1).integers(0, D, (T, B)).astype(np.int32)
XS = np.eye(D, dtype=np.float32)[TOKENS]
STRICT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
}
strict = pytest.mark.parametrize("setting", STRICT)


def trace_gradient(loss: Callable[[Any], Any], params: Any) -> None:
    """Without compiling anything: both switches act while a function is traced."""
    jax.eval_shape(jax.value_and_grad(loss), params)


@strict
@pytest.mark.parametrize(
    "form",
    ["lstm", "gru_before"]
    + [pytest.param(f, marks=pytest.mark.slow) for f in ("rnn", "gru_after", *UNITWISE_FORMS)],
)
def test_layers_and_steps(setting: str, form: str) -> None:
    params = init(form, random.key(0), D, H)
    flags = {"mask": MASK, "resets": ~MASK}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (XS, {**flags, "reverse": True, "remat": 2}),
        (TOKENS, {**flags, "remat": 2}),
        (TOKENS, {"input_scale": np.ones((T, B), np.float32)}),
    ]
    with STRICT[setting]():
        for xs, options in cases:
            for backend in {"scan", "reference", fast(params)}:

                def loss(params: Any, xs: Any = xs, options: Any = options) -> Any:
                    carry, ys = layer(params, None, xs, backend=backend, **options)  # noqa: B023
                    return jnp.sum(carry.h) + jnp.sum(ys)

                trace_gradient(loss, params)
        carry = cells.zero_carry(params, B)
        for x in (XS[0], TOKENS[0]):
            jax.eval_shape(cells.cell_of(params).step, params, carry, x)


@strict
@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2, "dropout": 0.3, "output_dropout": 0.5, "remat": 2, "initialisation": "tf1"},
        {"embedding_size": 4, "bidirectional": True, "dropout": 0.5, "dropout_place": "inputs"},
        {"cell": "gru", "dropout": 0.5, "dropout_place": "inputs", "initialisation": "keras"},
        {"embedding_size": H, "tied": True, "compute_dtype": "bfloat16"},
    ],
)
def test_language_models(setting: str, options: dict[str, Any]) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=H, **options), V)
    with STRICT[setting]():
        params = jax.eval_shape(model.init, random.key(0))

        def loss(params: Any) -> Any:
            key = random.key(1)
            sums, _ = model.token_sums(
                params, None, TOKENS, TOKENS, mask=MASK, resets=~MASK, dropout_key=key
            )
            return sums.loss / sums.weight + sums.correct

        trace_gradient(loss, params)
        jax.eval_shape(lambda params: model.apply(params, None, TOKENS), params)


@strict
@pytest.mark.parametrize(
    "options",
    [{"pooling": "max", "bidirectional": True, "word_dropout": 0.2}, {"pooling": "mean"}, {}],
)
def test_classifiers(setting: str, options: dict[str, Any]) -> None:
    model = Classifier(ClassifierConfig(hidden_size=H, embedding_size=4, **options), V)
    with STRICT[setting]():
        params = jax.eval_shape(model.init, random.key(0))
        for labels in (np.ones(B, np.int32), np.ones(B, np.float32)):

            def loss(params: Any, labels: Any = labels) -> Any:
                key = random.key(1)
                weights = np.ones(B, np.float32)
                sums = model.sums(
                    params, TOKENS, labels, mask=MASK, weights=weights, dropout_key=key
                )
                return sums.loss / sums.weight + sums.correct

            trace_gradient(loss, params)


@strict
def test_sampling(setting: str) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=H), V)
    zeros, given = np.zeros(B, np.int32), np.full((4, B), sampling.FREE, np.int32)
    filters, stops = make_filters(V, top_n=2, top_p=0.5, forbidden=[1]), make_stops(V, [[1, 2]])
    with STRICT[setting]():
        keys = jax.vmap(random.fold_in, (None, 0))(random.key(0), jnp.arange(B))
        rows, four = decode.Rows(keys, jnp.asarray(zeros), jnp.asarray(zeros)), jnp.int32(4)

        def write(params: Any) -> Any:
            carry = model.zero_carry(params, B)
            carry, hidden = decode._prefill(model, params, carry, TOKENS, MASK)
            first = jax.tree.map(lambda a: a[:1], (carry, hidden))
            beams._search(
                model,
                2,
                params,
                *first,
                given[:, 0],
                four,
                jnp.float32(1),
                filters.forbidden,
                stops,
            )
            scoring._losses(model, params, carry, TOKENS, TOKENS, MASK)
            writing = decode.DecodeState(
                carry, hidden, jnp.zeros((B, V), bool), zeros, jnp.zeros(B, bool), jnp.int32(0)
            )
            return decode.decode(model, True, params, writing, rows, given, four, filters, stops)

        jax.eval_shape(write, jax.eval_shape(model.init, random.key(0)))
        many = make_filters(1000, top_n=100, top_p=0.5, min_p=0.1, repetition_penalty=1.1)
        row = jax.ShapeDtypeStruct((B, 1000), jnp.float32)
        seen, uniform = (
            jax.ShapeDtypeStruct(*each) for each in (((B, 1000), jnp.bool_), ((B,), jnp.float32))
        )
        jax.eval_shape(filtered, row, seen, many)
        jax.eval_shape(choose, row, uniform, seen, many)


@pytest.mark.slow
def test_checks_for_leaks_and_nans_find_none() -> None:
    """Not even where a target is no token."""
    params = init("lstm", random.key(0), D, H)
    with jax.checking_leaks():
        trace_gradient(lambda params: jnp.sum(layer(params, None, XS, remat=2)[1]), params)
    output = OutputParams(jnp.ones((D, V)), jnp.zeros(V))
    with jax.debug_nans(True):
        policy = products(None, jnp.float32)
        sums, _ = fused_cross_entropy(policy, 2, output, XS, np.where(MASK, 1, -100), None)
    assert sums.weight == MASK.sum()

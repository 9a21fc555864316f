"""JAX's own switches: whatever they refuse or look for, the library does without it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import FORMS, each_form, fast, init, slow
from jax import random

from lstm_jax import cells, sampling
from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.losses import OutputParams, fused_cross_entropy
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.precision import products
from lstm_jax.recurrence import layer

T, B, D, H, V = 5, 3, 4, 2, 9
MASK = np.random.default_rng(0).random((T, B)) < 0.7
TOKENS = np.random.default_rng(1).integers(0, D, (T, B)).astype(np.int32)
XS = np.eye(D, dtype=np.float32)[TOKENS]
STRICT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
}


@pytest.fixture(params=STRICT)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    with STRICT[request.param]():
        yield


def trace_gradient(loss: Callable[[Any], Any], params: Any) -> None:
    """Without compiling anything: both switches act while a function is traced."""
    jax.eval_shape(jax.value_and_grad(loss), params)


@each_form(FORMS, "lstm", "gru_before")
def test_layers_and_steps(strict: None, form: str) -> None:
    params, given = init(form, random.key(0), D, H), {"mask": MASK, "resets": ~MASK}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (XS, {**given, "reverse": True, "remat": 2}),
        (TOKENS, {**given, "remat": 2}),
        (TOKENS, {"input_scale": np.ones((T, B), np.float32)}),
    ]
    for xs, options in cases:
        for backend in {"scan", "reference", fast(params)}:

            def loss(params: Any, xs: Any = xs, options: Any = options) -> Any:
                carry, ys = layer(params, None, xs, backend=backend, **options)  # noqa: B023
                return jnp.sum(carry.h) + jnp.sum(ys)

            trace_gradient(loss, params)
    for x in (XS[0], TOKENS[0]):
        jax.eval_shape(cells.cell_of(params).step, params, cells.zero_carry(params, B), x)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2, "dropout": 0.3, "output_dropout": 0.5, "remat": 2, "initialisation": "tf1"},
        {"embedding_size": 4, "bidirectional": True, "dropout": 0.5, "dropout_place": "inputs"},
        {"cell": "gru", "dropout": 0.5, "dropout_place": "inputs", "initialisation": "keras"},
        {"embedding_size": H, "tied": True, "compute_dtype": "bfloat16"},
        {"cell": "rnn", "activation": "relu", "recurrent_dropout": 0.5, "backend": "scan"},
    ],
)
def test_language_models(strict: None, options: dict[str, Any]) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=H, **options), V)
    params = jax.eval_shape(model.init, random.key(0))

    def loss(params: Any) -> Any:
        flags = {"mask": MASK, "resets": ~MASK, "dropout_key": random.key(1)}
        sums, _ = model.token_sums(params, None, TOKENS, TOKENS, **flags)
        return sums.loss / sums.weight + sums.correct

    trace_gradient(loss, params)
    jax.eval_shape(lambda params: model.apply(params, None, TOKENS), params)


@pytest.mark.parametrize(
    "options",
    [{"pooling": "max", "bidirectional": True, "word_dropout": 0.2}, {"pooling": "mean"}, {}],
)
def test_classifiers(strict: None, options: dict[str, Any]) -> None:
    model = Classifier(ClassifierConfig(hidden_size=H, embedding_size=4, **options), V)
    params = jax.eval_shape(model.init, random.key(0))
    for labels in (np.ones(B, np.int32), np.ones(B, np.float32)):

        def loss(params: Any, labels: Any = labels) -> Any:
            given = {"mask": MASK, "weights": np.ones(B, np.float32), "dropout_key": random.key(1)}
            sums = model.sums(params, TOKENS, labels, **given)
            return sums.loss / sums.weight + sums.correct

        trace_gradient(loss, params)


def test_sampling(strict: None) -> None:
    """Of a vocabulary that is drawn from in blocks, and whose likeliest are found in parts."""
    model = LanguageModel(LanguageModelConfig(hidden_size=H), 12_000)
    params = model.init(random.key(0))
    template = np.full((T, B), sampling.FREE, np.int32)
    template[0] = TOKENS[0]
    filters = {"top_n": 2, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "forbidden": [1]}
    sampling.generate(model, params, template, key=random.key(0), stops=[[1, 2]], **filters)
    sampling.beam_search(model, params, template[:, 0].tolist(), beams=2, stops=[[1, 2]])
    sampling.score(model, params, [[1, 2], [3, 4, 5]])


@slow
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

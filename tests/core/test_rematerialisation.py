"""Laws of computing activations again: the same numbers, from less memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    FORMS,
    assert_near,
    draw_carry,
    init,
    run_with_gradients,
    weighted,
)
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.recurrence import layer
from lstm_jax.stack import StackConfig, init_stack, run_stack

T, B, D, H, V = 11, 3, 4, 5, 7
NEAR = 1e-6


def tokens_of(seed: int) -> Any:
    return random.randint(random.key(seed), (T, B), 0, V)


@pytest.mark.parametrize(
    ("form", "reverse", "chunk"),
    [("lstm", True, 4)]
    + [pytest.param(form, True, 4, marks=pytest.mark.slow) for form in FORMS if form != "lstm"]
    + [("lstm", False, chunk) for chunk in (1, T - 1)]
    + [pytest.param(form, False, 4, marks=pytest.mark.slow) for form in FORMS]
    + [pytest.param("lstm", True, chunk, marks=pytest.mark.slow) for chunk in (1, T - 1, T, T + 5)],
)
def test_a_layer_in_chunks_gives_what_it_gives_whole(form: str, reverse: bool, chunk: int) -> None:
    keys = random.split(random.key(chunk), 5)
    params = init(form, keys[0], D, H)
    carry, xs = draw_carry(keys[1], params, B), random.normal(keys[2], (T, B, D))
    mask, resets = (random.bernoulli(key, 0.7, (T, B)) for key in keys[3:])
    options = {"mask": mask, "resets": resets, "reverse": reverse}
    found = run_with_gradients(params, carry, xs, remat=chunk, **options)
    assert_near(found, run_with_gradients(params, carry, xs, **options), NEAR)


@pytest.mark.parametrize("chunk", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_token_ids_scaled_by_dropout_go_through_chunks(chunk: int) -> None:
    params = init("lstm", random.key(0), V, H)
    scale = random.uniform(random.key(1), (T, B))
    found = run_with_gradients(params, None, tokens_of(2), input_scale=scale, remat=chunk)
    whole = run_with_gradients(params, None, tokens_of(2), input_scale=scale)
    assert_near(found, whole, NEAR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "vocabulary_size", "chunk"),
    [
        ({}, V, 4),
        ({"embedding_size": 4}, V, 1),
        ({"embedding_size": 4}, 40, T - 1),
        ({"embedding_size": H, "tied": True}, V, T),
        ({"dropout": 0.5, "dropout_place": "inputs"}, V, 4),
        ({"bidirectional": True, "embedding_size": 4}, V, 4),
    ],
)
def test_a_language_model_in_chunks_gives_what_it_gives_whole(
    options: dict[str, Any], vocabulary_size: int, chunk: int
) -> None:
    config = LanguageModelConfig(hidden_size=H, **options)
    mask = random.bernoulli(random.key(5), 0.8, (T, B))
    resets = random.bernoulli(random.key(6), 0.2, (T, B))

    def scored(remat: int | None) -> Any:
        whole = LanguageModelConfig(**vars(config) | {"remat": remat})
        model = LanguageModel(whole, vocabulary_size)
        params = model.init(random.key(0))

        def loss(params: Any) -> Any:
            sums, scores, carry = model.token_scores(
                params, None, tokens_of(1), tokens_of(2), mask=mask, resets=resets,
                dropout_key=random.key(3),
            )  # fmt: skip
            return sums.loss + weighted(4, carry), (sums, scores, carry)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    assert_near(scored(chunk), scored(None), NEAR)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5, "dropout_place": "outputs"}, {"output_dropout": 0.5}]
)
def test_each_chunk_draws_what_it_drops(options: dict[str, Any]) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=32, remat=4, **options), V)
    same = jnp.zeros((8, 1), jnp.int32)
    resets = jnp.arange(8)[:, None] == 4
    _, scores, _ = jax.jit(model.token_scores)(
        model.init(random.key(0)), None, same, same, resets=resets, dropout_key=random.key(1)
    )
    assert not np.allclose(scores.loss[:4], scores.loss[4:])


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stack_in_chunks_gives_what_it_gives_whole(bidirectional: bool) -> None:
    config = StackConfig(layers=2, hidden_size=H, bidirectional=bidirectional, dropout=0.5)
    layers = init_stack(random.key(0), config, D)
    xs = random.normal(random.key(1), (T, B, D))

    def run(remat: int | None) -> Any:
        whole = StackConfig(**vars(config) | {"remat": remat})
        return jax.jit(partial(run_stack, whole))(layers, None, xs, dropout_key=random.key(2))

    assert_near(run(4), run(None), NEAR)


def temporary_bytes(run: Any, *arguments: Any) -> int:
    return int(
        jax.jit(jax.grad(run)).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    )


def test_a_long_sequence_takes_a_tenth_of_the_memory() -> None:
    times = 4_000
    tokens = jnp.zeros((times, 1), jnp.int32)

    def needed(remat: int | None) -> int:
        model = LanguageModel(LanguageModelConfig(hidden_size=64, remat=remat), V)

        def loss(params: Any) -> Any:
            return model.token_sums(params, None, tokens, tokens)[0].loss

        return temporary_bytes(loss, model.init(random.key(0)))

    assert needed(63) < needed(None) / 10


@pytest.mark.parametrize("remat", [0, -1])
def test_no_chunk_is_refused(remat: int) -> None:
    params = init("lstm", random.key(0), D, H)
    with pytest.raises(ValueError, match=f"remat is {remat}; it must be at least 1"):
        layer(params, None, jnp.zeros((T, B, D)), remat=remat)
    with pytest.raises(ValueError, match=f"remat is {remat}; it must be at least 1"):
        StackConfig(remat=remat)

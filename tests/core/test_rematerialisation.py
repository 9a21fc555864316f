"""Laws of computing activations again: the same numbers, from less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import (
    FORMS,
    LIKE_OTHERS,
    UNITWISE_FORMS,
    B,
    D,
    H,
    assert_near,
    cases,
    draw,
    flags,
    run_with_gradients,
    second_order_of,
    weighted,
)
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.stack import StackConfig, init_stack, run_stack

T, V = 11, 7
NEAR = 1e-6
FLAGS = flags(0, (T, B))
TOKENS = np.random.default_rng(0).integers(0, V, (2, T, B), np.int32)


@cases(
    "form, reverse, chunk",
    [(form, True, 4) for form in FORMS]
    + [("lstm", False, n) for n in (1, 4, T - 1)]
    + [("lstm", True, n) for n in (T, T + 5)],
    ("lstm", True, 4),
    ("lstm", False, 1),
    ("lstm", False, T - 1),
    beyond=LIKE_OTHERS,
)
def test_a_layer_in_chunks_gives_what_it_gives_whole(form: str, reverse: bool, chunk: int) -> None:
    inputs = draw(form, chunk, shape=(T, B, D, H))
    found = run_with_gradients(*inputs, remat=chunk, **FLAGS, reverse=reverse)
    assert_near(found, run_with_gradients(*inputs, **FLAGS, reverse=reverse), NEAR)


@cases(
    "form, backend",
    [("lstm", "scan"), ("mingru", "scan"), ("mingru", "auto")]
    + [(form, "parallel") for form in UNITWISE_FORMS],
    ("mingru", "scan"),
    ("diag-lstm", "parallel"),
    beyond=["auto", "minlstm", "diag-gru"],
)
def test_the_second_order_of_chunks_is_the_references_whole(
    float64: None, form: str, backend: str
) -> None:
    inputs, given = draw(form, 0, jnp.float64, (5, B, D, H)), flags(1, (5, B))
    found = second_order_of(inputs, **given, backend=backend, remat=2)
    assert_near(found, second_order_of(inputs, **given, backend="reference"), 1e-10)


DROPPED: dict[str, Any] = {"layers": 2, "recurrent_dropout": 0.5}
IN_CHUNKS = [
    ({"dropout": 0.5, "dropout_place": "inputs"}, V, 4),
    ({"bidirectional": True, "dropout": 0.5, "dropout_place": "inputs"}, V, 4),
    ({"bidirectional": True, "embedding_size": 4, "layers": 2}, V, 4),
    ({"embedding_size": 4, "layers": 2}, V, 1),
    ({"embedding_size": 4}, 40, T - 1),
    ({"embedding_size": H, "tied": True}, V, T),
    (
        {"embedding_size": 4, "word_dropout": 0.3, "output_dropout": 0.5,
         "output_dropout_per": "sequence"}, V, 4,
    ),
    ({**DROPPED, "recurrent_dropout_kind": "state"}, V, 4),
    ({**DROPPED, "recurrent_dropout_kind": "candidate", "cell": "gru"}, V, 4),
    ({**DROPPED, "recurrent_dropout_kind": "zoneout"}, V, 4),
    ({**DROPPED, "recurrent_dropout_kind": "zoneout", "cell": "mingru"}, V, 4),
]  # fmt: skip


@cases("options, vocabulary_size, chunk", IN_CHUNKS, *IN_CHUNKS[:2])
def test_a_language_model_in_chunks_gives_what_it_gives_whole(
    options: dict[str, Any], vocabulary_size: int, chunk: int
) -> None:
    def scored(remat: int | None) -> Any:
        config = LanguageModelConfig(hidden_size=H, remat=remat, **options)
        model = LanguageModel(config, vocabulary_size)

        def loss(params: Any) -> Any:
            sums, scores, carry = model.token_scores(
                params, None, *TOKENS, **FLAGS, dropout_key=random.split(random.key(3), B)
            )
            return sums.loss + weighted(4, carry), (sums, scores, carry)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(model.init(random.key(0)))

    assert_near(scored(chunk), scored(None), NEAR)


def test_a_stack_in_chunks_drops_what_it_drops_whole() -> None:
    """Also between its layers, where a language model's chunks draw each for itself."""

    def run(remat: int | None) -> Any:
        config = StackConfig(layers=2, hidden_size=H, dropout=0.5, remat=remat)
        xs = random.normal(random.key(1), (T, B, D))

        def outputs(layers: Any, xs: Any) -> Any:
            return run_stack(config, layers, None, xs, **FLAGS, dropout_key=random.key(2))

        found, pull = jax.vjp(jax.jit(outputs), init_stack(random.key(0), config, D), xs)
        return found, pull(found)

    assert_near(run(4), run(None), NEAR)


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


def test_a_long_sequence_takes_a_tenth_of_the_memory() -> None:
    tokens = jnp.zeros((4_000, 1), jnp.int32)

    def needed(remat: int | None) -> int:
        model = LanguageModel(LanguageModelConfig(hidden_size=64, remat=remat), V)

        def loss(params: Any) -> Any:
            return model.token_sums(params, None, tokens, tokens)[0].loss

        program = jax.jit(jax.grad(loss)).lower(model.init(random.key(0))).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    assert needed(63) < needed(None) / 10

"""Errors at the border: one line that names the value and what was expected."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest
from core_cases import assert_message
from jax import random

from lstm_jax import cells
from lstm_jax.models import LanguageModelConfig
from lstm_jax.recurrence import layer, lstm
from lstm_jax.stack import StackConfig, step_stack

T, B, D, H = 4, 2, 3, 5

KEY = random.key(0)
PARAMS = cells.init_lstm(KEY, D, H)
XS = jnp.zeros((T, B, D))
MASK = jnp.ones((T, B), bool)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"backend": "cuda"}, ("backend", "'cuda'", "auto", "scan", "reference")),
        ({"unroll": 0}, ("unroll", "0", "at least 1")),
        ({"compute_dtype": "float16"}, ("compute_dtype", "'float16'", "bfloat16")),
        ({"xs": jnp.zeros((T, B, D + 1))}, ("xs", "(4, 2, 4)", "[T, B, 3]")),
        ({"xs": jnp.zeros((T, D))}, ("xs", "(4, 3)", "[T, B, 3]")),
        ({"xs": jnp.zeros((T, B, D), jnp.int32)}, ("xs", "(4, 2, 3)", "[T, B]")),
        ({"xs": jnp.zeros((T,), jnp.int32)}, ("xs", "(4,)", "[T, B]")),
        ({"mask": MASK.T}, ("mask", "bool", "(2, 4)", "(4, 2)")),
        ({"mask": MASK.astype(jnp.float32)}, ("mask", "float32", "bool")),
        ({"resets": MASK[0]}, ("resets", "(2,)", "(4, 2)")),
        ({"resets": MASK.astype(jnp.int32)}, ("resets", "int32", "bool")),
        (
            {"carry": cells.GRUCarry(jnp.zeros((B, H)))},
            ("carry", "GRUCarry", "LSTMParams", "LSTMCarry"),
        ),
        ({"carry": (jnp.zeros((B, H)),) * 2}, ("carry", "tuple", "LSTMCarry")),
        ({"carry": cells.zero_carry(PARAMS, B + 1)}, ("carry.h", "(3, 5)", "(2, 5)")),
        (
            {"carry": cells.LSTMCarry(jnp.zeros((B, H)), jnp.zeros((B, D)))},
            ("carry.c", "(2, 3)", "(2, 5)"),
        ),
    ],
)
@pytest.mark.parametrize("run", [lstm, layer])
def test_layer_names_what_does_not_fit(
    run: Any, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    given: dict[str, Any] = {"carry": None, "xs": XS, **options}
    carry, xs = given.pop("carry"), given.pop("xs")
    assert_message(lambda: run(PARAMS, carry, xs, **given), *parts)


def test_layer_asks_for_parameters() -> None:
    with pytest.raises(TypeError, match=r"LSTMParams.*got dict"):
        cells.cell_of({})  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [cells.init_lstm, cells.init_gru, cells.init_rnn])
def test_init_names_what_does_not_fit(draw: Any) -> None:
    assert_message(lambda: draw(KEY, 0, H), "input_size is 0", "at least 1")
    assert_message(lambda: draw(KEY, D, -1), "hidden_size is -1", "at least 1")
    assert_message(lambda: draw(KEY, D, H, initialisation="torch"), "'torch'", "pytorch", "tf1")


def test_init_gru_and_cell_named_name_the_choices() -> None:
    assert_message(lambda: cells.init_gru(KEY, D, H, reset="never"), "'never'", "after", "before")
    assert_message(lambda: cells.cell_named("LSTM"), "'LSTM'", "rnn", "lstm", "gru")


@pytest.mark.parametrize("config", [StackConfig, LanguageModelConfig])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"cell": "elman"}, ("'elman'", "lstm")),
        ({"layers": 0}, ("layers is 0",)),
        ({"hidden_size": -3}, ("hidden_size is -3",)),
        ({"unroll": 0}, ("unroll is 0",)),
        ({"dropout": 1.0}, ("dropout is 1.0", "below 1")),
        ({"dropout": -0.1}, ("dropout is -0.1",)),
        ({"dropout": float("nan")}, ("dropout is nan",)),
        ({"dropout_place": "state"}, ("'state'", "between", "outputs", "inputs")),
        ({"gru_reset": "never"}, ("'never'", "after", "before")),
        ({"initialisation": "torch"}, ("'torch'", "pytorch", "keras", "tf1")),
        ({"compute_dtype": "float16"}, ("'float16'", "float32", "tf32", "bfloat16")),
        ({"backend": "cuda"}, ("'cuda'", "auto", "scan", "reference")),
    ],
)
def test_config_names_what_does_not_fit(
    config: Any, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    assert_message(lambda: config(**options), *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"embedding_size": 0}, ("embedding_size is 0",)),
        ({"output_stddev": 0.0}, ("output_stddev is 0.0",)),
        ({"output_stddev": float("inf")}, ("output_stddev is inf",)),
        ({"output_dropout": 1.0}, ("output_dropout is 1.0",)),
        ({"cell": "gru", "projection_size": 4}, ("projection_size is 4", "gru", "'lstm'")),
        ({"tied": True}, ("embedding_size is None", "needs it to be 128")),
        ({"tied": True, "projection_size": 4}, ("needs it to be 4",)),
        ({"tied": True, "embedding_size": 128, "bidirectional": True}, ("needs it to be 256",)),
        (
            {"tied": True, "embedding_size": 128, "output_stddev": 0.1},
            ("no weights of its own", "embedding_stddev"),
        ),
    ],
)
def test_language_model_config_names_what_does_not_fit(
    options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    assert_message(lambda: LanguageModelConfig(**options), *parts)


def test_bidirectional_stack_takes_no_single_step() -> None:
    config = StackConfig(bidirectional=True)
    assert_message(lambda: step_stack(config, (), (), XS[0]), "bidirectional", "step")

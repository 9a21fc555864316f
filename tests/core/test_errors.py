"""Errors at the border: one line that names the value and what was expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest
from core_cases import assert_message
from jax import random

import lstm_jax
from lstm_jax import cells
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.recurrence import layer, lstm
from lstm_jax.stack import (
    Directions,
    StackConfig,
    init_stack,
    run_stack,
    stack_zero_carry,
    step_stack,
)

T, B, D, H = 4, 2, 3, 5

KEY = random.key(0)
PARAMS = cells.init_lstm(KEY, D, H)
XS = jnp.zeros((T, B, D))
MASK = jnp.ones((T, B), bool)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"backend": "cuda"}, ("backend", "'cuda'", "auto", "scan", "reference")),
        ({"backend": "parallel"}, ("'parallel'", "units of lstm depend", "mingru", "diag-lstm")),
        ({"unroll": 0}, ("unroll", "0", "at least 1")),
        ({"compute_dtype": "float16"}, ("compute_dtype", "'float16'", "bfloat16")),
        ({"xs": jnp.zeros((T, B, D + 1))}, ("xs", "(4, 2, 4)", "[T, B, 3]")),
        ({"xs": jnp.zeros((T, D))}, ("xs", "(4, 3)", "[T, B, 3]")),
        ({"xs": jnp.zeros((T, B, D), jnp.int32)}, ("xs", "(4, 2, 3)", "[T, B]")),
        ({"xs": jnp.zeros((T,), jnp.int32)}, ("xs", "(4,)", "[T, B]")),
        ({"xs": XS.astype(jnp.complex64)}, ("xs", "complex64", "real")),
        ({"xs": [[[0.0] * D] * B] * T}, ("xs is list", "jnp.asarray")),
        ({"xs": None}, ("xs is NoneType", "jnp.asarray")),
        ({"mask": [[True] * B] * T}, ("mask is list", "jnp.asarray")),
        ({"carry": cells.LSTMCarry([[0.0] * H] * B, jnp.zeros((B, H)))}, ("carry.h is list",)),
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


STEPS = {cell.name: cell.step for cell in cells.CELLS}
LAYERS_OF = [getattr(lstm_jax, cell.function) for cell in cells.CELLS]


@pytest.mark.parametrize("function", [*LAYERS_OF, *STEPS.values()])
@pytest.mark.parametrize("name", STEPS)
def test_parameters_of_another_cell_name_the_function_to_use(function: Any, name: str) -> None:
    params = cells.cell_named(name).init(KEY, D, H)
    suffix = "_step" * function.__name__.endswith("_step")
    (cell,) = (c for c in cells.CELLS if function.__name__ == c.function + suffix)
    args = (XS[0],) if suffix else (XS,)
    if cell.name == name:
        function(params, cells.zero_carry(params, B), *args)
        return
    used = f"use {cells.cell_named(name).function}{suffix}"
    takes = f"{function.__name__} takes {cell.params.__name__}"
    assert_message(lambda: function(params, None, *args), takes, type(params).__name__, used)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"x": XS}, ("x", "(4, 2, 3)", "[B, 3]")),
        ({"x": XS[0, 0]}, ("x", "(3,)", "[B, 3]")),
        ({"x": jnp.zeros((T, B), jnp.int32)}, ("x", "(4, 2)", "[B] token ids")),
        ({"x": XS[0].astype(jnp.complex64)}, ("x is complex64",)),
        ({"x": [[0.0] * D] * B}, ("x is list", "jnp.asarray")),
        ({"x": jnp.zeros((1, D))}, ("carry.h", "(2, 5)", "(1, 5)")),
        ({"carry": None}, ("carry is NoneType", "Carry")),
        ({"size": D}, ("carry.h", "(2, 3)", "(2, 5)")),
    ],
)
def test_step_names_what_does_not_fit(
    name: str, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    params = cells.cell_named(name).init(KEY, D, H)
    sized = cells.cell_named(name).init(KEY, D, options.get("size", H))
    carry = options.get("carry", cells.zero_carry(sized, B))
    assert_message(lambda: STEPS[name](params, carry, options.get("x", XS[0])), *parts)


def test_layer_asks_for_parameters() -> None:
    with pytest.raises(TypeError, match=r"LSTMParams.*got dict"):
        cells.cell_of({})  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [cell.init for cell in cells.CELLS])
def test_init_names_what_does_not_fit(draw: Any) -> None:
    assert_message(lambda: draw(KEY, 0, H), "input_size is 0", "at least 1")
    assert_message(lambda: draw(KEY, D, -1), "hidden_size is -1", "at least 1")
    assert_message(lambda: draw(KEY, D, 2.5), "hidden_size is 2.5", "an integer")
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
        ({"backend": "parallel"}, ("'parallel'", "units of lstm depend", "mingru", "diag-lstm")),
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


STACK = StackConfig(layers=2, hidden_size=H)
LAYERS = init_stack(KEY, STACK, D)
CARRY = stack_zero_carry(LAYERS, B)
BOTH = Directions(*CARRY)


@pytest.mark.parametrize("run", [run_stack, step_stack])
@pytest.mark.parametrize(
    ("options", "carry", "parts"),
    [
        ({"layers": 3}, CARRY, ("parameters of 2 layers", "config.layers is 3")),
        ({"layers": 1}, CARRY, ("parameters of 2 layers", "config.layers is 1")),
        ({}, CARRY[:1], ("carry of 1 layers", "config.layers is 2")),
        ({"bidirectional": True}, CARRY, ("layer 0", "LSTMParams", "both directions")),
        ({}, (CARRY[0], BOTH), ("carry of layer 1", "Directions", "one direction")),
        ({"cell": "gru"}, CARRY, ("layer 0", "LSTMParams", "config.cell is 'gru'")),
    ],
)
def test_stack_names_what_does_not_fit(
    run: Any, options: dict[str, Any], carry: Any, parts: tuple[str, ...]
) -> None:
    config = replace(STACK, **options)
    further = {"allow_bidirectional": True} if run is step_stack else {}
    xs = XS[0] if run is step_stack else XS
    assert_message(lambda: run(config, LAYERS, carry, xs, **further), *parts)


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (jnp.zeros((T, B)), ("targets is float32", "integers")),
        (jnp.zeros((T, B + 1), jnp.int32), ("(4, 3)", "(4, 2)")),
        (jnp.zeros(T, jnp.int32), ("(4,)", "(4, 2)")),
        ([[0] * B] * T, ("targets is list", "jnp.asarray")),
    ],
)
def test_loss_names_what_does_not_fit(targets: Any, parts: tuple[str, ...]) -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=H), vocabulary_size=D)
    params, tokens = model.init(KEY), jnp.zeros((T, B), jnp.int32)
    assert_message(lambda: model.token_sums(params, None, tokens, targets), *parts)


def test_bidirectional_stack_takes_no_single_step() -> None:
    config = StackConfig(bidirectional=True)
    assert_message(lambda: step_stack(config, (), (), XS[0]), "bidirectional", "step")

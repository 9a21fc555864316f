"""Errors at the border: one line that names the value and what was expected."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest
from core_cases import assert_message
from jax import random

import lstm_jax
from lstm_jax import cells
from lstm_jax.classifier import Classifier, ClassifierConfig
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
ZEROS = jnp.zeros((B, H))
NAN = float("nan")
BOOLS = (False, True)
NOT_PARALLEL = ("'parallel'", "units of lstm depend", "mingru", "diag-lstm")
Table = list[tuple[dict[str, Any], tuple[str, ...]]]
"""What is changed in a call, and the parts of the line that refuses it."""


def a_layer(carry: Any = None, xs: Any = XS, **options: Any) -> Any:
    return lstm(PARAMS, carry, xs, **options)


LAYER: Table = [
    ({"backend": "cuda"}, ("backend", "'cuda'", "auto", "scan", "reference")),
    ({"backend": "parallel"}, NOT_PARALLEL),
    ({"unroll": 0}, ("unroll", "0", "at least 1")),
    ({"unroll": "2"}, ("unroll is '2'", "give a whole number")),
    ({"remat": "2"}, ("remat is '2'", "give a whole number")),
    *(({"remat": n}, (f"remat is {n}; it must be at least 1",)) for n in (0, -1)),
    ({"compute_dtype": "float16"}, ("compute_dtype", "'float16'", "bfloat16")),
    ({"compute_dtype": jnp.bfloat16}, ("give one of the texts", "'bfloat16'")),
    ({"xs": jnp.zeros((T, B, D + 1))}, ("xs", "(4, 2, 4)", "[T, B, 3]")),
    ({"xs": jnp.zeros((T, D))}, ("xs", "(4, 3)", "[T, B, 3]")),
    ({"xs": jnp.zeros((T, B, D), jnp.int32)}, ("xs", "(4, 2, 3)", "[T, B]")),
    ({"xs": jnp.zeros((T,), jnp.int32)}, ("xs", "(4,)", "[T, B]")),
    ({"xs": XS.astype(jnp.complex64)}, ("xs", "complex64", "real")),
    ({"xs": [[[0.0] * D] * B] * T}, ("xs is list", "jnp.asarray")),
    ({"xs": None}, ("xs is NoneType", "jnp.asarray")),
    ({"mask": [[True] * B] * T}, ("mask is list", "jnp.asarray")),
    ({"mask": MASK.T}, ("mask", "bool", "(2, 4)", "(4, 2)")),
    ({"mask": MASK.astype(jnp.float32)}, ("mask", "float32", "bool")),
    ({"resets": MASK[0]}, ("resets", "(2,)", "(4, 2)")),
    ({"resets": MASK.astype(jnp.int32)}, ("resets", "int32", "bool")),
    ({"carry": cells.LSTMCarry([[0.0] * H] * B, ZEROS)}, ("carry.h is list",)),
    ({"carry": cells.GRUCarry(ZEROS)}, ("carry", "GRUCarry", "LSTMParams", "LSTMCarry")),
    ({"carry": (ZEROS, ZEROS)}, ("carry", "tuple", "LSTMCarry")),
    ({"carry": cells.zero_carry(PARAMS, B + 1)}, ("carry.h", "(3, 5)", "(2, 5)")),
    ({"carry": cells.LSTMCarry(ZEROS, XS[0])}, ("carry.c", "(2, 3)", "(2, 5)")),
]


def of_step(name: str) -> Callable[..., Any]:
    cell = cells.cell_named(name)

    def call(x: Any = XS[0], size: int = H, **options: Any) -> Any:
        carry = options.get("carry", cells.zero_carry(cell.init(KEY, D, size), B))
        return cell.step(cell.init(KEY, D, H), carry, x)

    return call


STEP: Table = [
    ({"x": XS}, ("x", "(4, 2, 3)", "[B, 3]")),
    ({"x": XS[0, 0]}, ("x", "(3,)", "[B, 3]")),
    ({"x": jnp.zeros((T, B), jnp.int32)}, ("x", "(4, 2)", "[B] token ids")),
    ({"x": XS[0].astype(jnp.complex64)}, ("x is complex64",)),
    ({"x": [[0.0] * D] * B}, ("x is list", "jnp.asarray")),
    ({"x": jnp.zeros((1, D))}, ("carry.h", "(2, 5)", "(1, 5)")),
    ({"carry": None}, ("carry is NoneType", "Carry")),
    ({"size": D}, ("carry.h", "(2, 3)", "(2, 5)")),
]


def of_parameters(cell: cells.Cell, is_step: bool) -> Callable[..., Any]:
    params = cell.init(KEY, D, H)

    def call(**changes: Any) -> Any:
        changed, carry = params._replace(**changes), cells.zero_carry(params, B)
        return cell.step(changed, carry, XS[0]) if is_step else layer(changed, carry, XS)

    return call


PARAMETERS: Table = [
    ({"b": jnp.ones(3)}, ("b has shape (3,); expected (",)),
    ({"w_x": jnp.ones(D)}, ("w_x has shape (3,); expected (D, ", " * H)")),
    ({"w_x": jnp.ones((D, 1)), "b": jnp.ones(1)}, ("has shape (", "; expected (")),
    ({"w_x": [[0.0]]}, ("w_x is list", "jnp.asarray")),
]

DRAWN: Table = [
    ({"input_size": 0}, ("input_size is 0", "at least 1")),
    ({"hidden_size": -1}, ("hidden_size is -1", "at least 1")),
    ({"hidden_size": 2.5}, ("hidden_size is 2.5", "an integer")),
    ({"initialisation": "torch"}, ("'torch'", "pytorch", "tf1")),
    ({"dtype": jnp.int32}, ("dtype is int32", "floating-point")),
]


def of_init(init: Callable[..., Any]) -> Callable[..., Any]:
    return partial(init, KEY, **{"input_size": D, "hidden_size": H})


ZONEOUT = {"recurrent_dropout": 0.1, "recurrent_dropout_kind": "zoneout"}
STACK: Table = [
    ({"cell": "elman"}, ("'elman'", "lstm")),
    ({"layers": 0}, ("layers is 0",)),
    ({"hidden_size": -3}, ("hidden_size is -3",)),
    ({"unroll": 0}, ("unroll is 0",)),
    *(({"remat": n}, (f"remat is {n}; it must be at least 1",)) for n in (0, -1)),
    ({"dropout": 1.0}, ("dropout is 1.0", "below 1")),
    ({"dropout": -0.1}, ("dropout is -0.1",)),
    ({"dropout": NAN}, ("dropout is nan",)),
    ({"dropout_place": "state"}, ("'state'", "between", "outputs", "inputs")),
    ({"gru_reset": "never"}, ("'never'", "after", "before")),
    ({"initialisation": "torch"}, ("'torch'", "pytorch", "keras", "tf1")),
    ({"compute_dtype": "float16"}, ("'float16'", "float32", "tf32", "bfloat16")),
    ({"compute_dtype": jnp.bfloat16}, ("must be a text, one of", "bfloat16")),
    ({"backend": "cuda"}, ("'cuda'", "auto", "scan", "reference")),
    ({"backend": "parallel"}, NOT_PARALLEL),
    ({"wavefront": 0}, ("wavefront is 0", "at least 1")),
    *(
        ({"wavefront": 3, **others}, ("wavefront is 3, but", what, "set wavefront to None"))
        for others, what in (
            ({"layers": 2, "bidirectional": True}, "bidirectional is True"),
            ({"layers": 2, "backend": "reference"}, "backend is 'reference'"),
            ({"layers": 2, "cell": "mingru"}, "cell is 'mingru'"),
            ({}, "layers is 1"),
        )
    ),
    ({"directions_at_once": True}, ("directions_at_once is True", "bidirectional is False")),
    ({"gru_reset": "before"}, ("gru_reset is 'before', which lstm lacks; leave it",)),
    ({"cell": "rnn", "backend": "mosaic"}, ("'mosaic'", "rnn", "lstm or gru", "'auto'")),
    ({"activation": "tan"}, ("activation is 'tan'",)),
    ({"cell": "rnn", "recurrent_activation": "relu"}, ("recurrent_activation", "rnn")),
    ({"cell": "rnn", "activation": "sigmoid", "backend": "scan"}, ("not support activation",)),
    ({"cell": "rnn", "recurrent_dropout": 0.1, "recurrent_dropout_kind": "candidate"}, ("rnn",)),
    ({"cell": "mingru", "recurrent_dropout": 0.1}, ("'state', which mingru lacks", "'zoneout'")),
    ({"zoneout_cell": 0.5}, ("zoneout_cell is 0.5", "leave it")),
    ({"cell": "gru", **ZONEOUT, "zoneout_cell": 0.5}, ("zoneout_cell is 0.5", "leave it")),
    ({**ZONEOUT, "backend": "scan"}, ("not support recurrent_dropout_kind 'zoneout'",)),
]
TIED = {"tied": True, "embedding_size": 128}
LANGUAGE_MODEL: Table = [
    ({"embedding_size": 0}, ("embedding_size is 0",)),
    ({"output_stddev": 0.0}, ("output_stddev is 0.0",)),
    ({"output_stddev": float("inf")}, ("output_stddev is inf",)),
    ({"output_dropout": 1.0}, ("output_dropout is 1.0",)),
    ({"cell": "gru", "projection_size": 4}, ("projection_size is 4", "gru", "'lstm'")),
    ({"tied": True}, ("embedding_size is None", "needs it to be 128")),
    ({"tied": True, "projection_size": 4}, ("needs it to be 4",)),
    ({**TIED, "bidirectional": True}, ("needs it to be 256",)),
    ({**TIED, "output_stddev": 0.1}, ("no weights of its own", "embedding_stddev")),
]
CLASSIFIER: Table = [
    ({"embedding_size": 0}, ("embedding_size is 0", "at least 1")),
    ({"dense_size": -1}, ("dense_size is -1", "at least 0")),
    ({"dense_dropout": 1.0}, ("dense_dropout is 1.0", "below 1")),
    ({"dense_dropout": NAN}, ("dense_dropout is nan",)),
    ({"word_dropout": -0.1}, ("word_dropout is -0.1", "at least 0")),
    ({"pooling": "first"}, ("'first'", "last", "max", "mean")),
]

CONFIG = StackConfig(layers=2, hidden_size=H)
LAYERS = init_stack(KEY, CONFIG, D)
CARRY = stack_zero_carry(LAYERS, B)
LAYERS_OF_STACK: Table = [
    ({"layers": 3}, ("parameters of 2 layers", "config.layers is 3")),
    ({"layers": 1}, ("parameters of 2 layers", "config.layers is 1")),
    ({"carry": CARRY[:1]}, ("carry of 1 layers", "config.layers is 2")),
    ({"bidirectional": True}, ("layer 0", "LSTMParams", "both directions")),
    ({"carry": (CARRY[0], Directions(*CARRY))}, ("of layer 1", "Directions", "one direction")),
    ({"cell": "gru"}, ("layer 0", "LSTMParams", "config.cell is 'gru'")),
]


def a_stack(carry: Any = CARRY, **changes: Any) -> Any:
    return run_stack(replace(CONFIG, **changes), LAYERS, carry, XS)


def a_step_of_a_stack(carry: Any = CARRY, **changes: Any) -> Any:
    config = replace(CONFIG, **changes)
    return step_stack(config, LAYERS, carry, XS[0], allow_bidirectional=True)


TOKENS = jnp.zeros((T, B), jnp.int32)
MODEL = LanguageModel(LanguageModelConfig(hidden_size=H), vocabulary_size=D)
TARGETS: Table = [
    ({"targets": jnp.zeros((T, B))}, ("targets is float32", "integers")),
    ({"targets": jnp.zeros((T, B + 1), jnp.int32)}, ("(4, 3)", "(4, 2)")),
    ({"targets": jnp.zeros(T, jnp.int32)}, ("(4,)", "(4, 2)")),
    ({"targets": [[0] * B] * T}, ("targets is list", "jnp.asarray")),
]


def a_loss(targets: Any) -> Any:
    return MODEL.token_sums(MODEL.init(KEY), None, TOKENS, targets)


KEYS: Table = [
    ({"dropout_key": random.PRNGKey(0)}, ("is uint32[2], not a typed", "jax.random.key")),
    ({"dropout_key": 0}, ("dropout_key is int", "jax.random.key")),
    ({"dropout_key": random.split(KEY, 3)}, ("(3,) for 2 sequences; give one per",)),
    ({"dropout_key": random.split(KEY, (2, 2))}, ("(2, 2) for 2 sequences",)),
]


def stack_of(rate: str) -> Callable[..., Any]:
    return partial(run_stack, replace(CONFIG, **{rate: 0.5}), LAYERS, None, XS)  # type: ignore[arg-type]


def words_dropped(**options: Any) -> Any:
    config = LanguageModelConfig(hidden_size=H, embedding_size=3, word_dropout=0.5)
    model = LanguageModel(config, D)
    return model.token_sums(model.init(KEY), None, TOKENS, TOKENS, **options)


READ: Table = [
    ({"tokens": jnp.zeros((T, B))}, ("tokens", "float32", "integers [T, B]")),
    ({"tokens": jnp.zeros(T, jnp.int32)}, ("tokens", "(4,)", "[T, B]")),
    ({"mask": MASK.T}, ("mask", "(2, 4)", "(4, 2)")),
    ({"mask": MASK.astype(jnp.float32)}, ("mask", "float32", "bool")),
    ({"vectors": None}, ("params.vectors is None", "frozen_embedding", "(11, 3)")),
    ({"vectors": jnp.zeros((12, 3))}, ("params.vectors", "(12, 3)", "(11, 3)")),
    ({"vectors": jnp.zeros((11, 3), jnp.int32)}, ("params.vectors", "int32", "floats")),
    ({"vectors": jnp.zeros((11, 3)), "frozen": False}, ("params.vectors", "frozen_embedding")),
]
JUDGED: Table = [
    ({"labels": jnp.zeros((B, 1))}, ("labels", "(2, 1)", "(2,)")),
    ({"weights": jnp.zeros(B + 1)}, ("weights", "(3,)", "(2,)")),
]


def of_classifier(method: str) -> Callable[..., Any]:
    def call(frozen: bool = True, **changes: Any) -> Any:
        config = ClassifierConfig(hidden_size=H, embedding_size=3, frozen_embedding=frozen)
        model = Classifier(config, 11)
        params = model.init(KEY)
        if "vectors" in changes:
            params = params._replace(vectors=changes.pop("vectors"))
        given = {"tokens": TOKENS, "mask": MASK} | changes
        if method == "sums":
            given = {"labels": jnp.zeros(B), **given}
        return getattr(model, method)(params, **given)

    return call


OTHERS: list[tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = [
    (cells.cell_of, {"params": {}}, ("LSTMParams", "got dict")),
    (
        of_parameters(cells.LSTM, False),
        {"w_hr": jnp.ones((H, 2))},
        ("w_h has shape (5, 20)", "expected (2, 20)"),
    ),
    (
        of_parameters(cells.GRU, False),
        {"b_hn": jnp.ones(15)},
        ("b_hn has shape (15,)", "expected (5,)"),
    ),
    (
        of_parameters(cells.DIAG_GRU, False),
        {"a": jnp.ones(3)},
        ("a has shape (3,)", "expected (15,)"),
    ),
    (
        partial(lstm_jax.gru, lstm_jax.init_gru(KEY, D, H), None, XS),
        {"input_scale": XS},
        ("gru has no option 'input_scale'",),
    ),
    (
        partial(lstm_jax.diag_gru, lstm_jax.init_diag_gru(KEY, D, H), None, XS),
        {"bogus": 1},
        ("diag_gru has no option 'bogus'", "it has mask, "),
    ),
    (
        partial(step_stack, StackConfig(bidirectional=True), (), ()),
        {"x": XS[0]},
        ("bidirectional", "step"),
    ),
]


@pytest.mark.parametrize(
    ("call", "changes", "parts"),
    [
        (call, *row)
        for calls, table in (
            ([a_layer], LAYER),
            ([of_step(cell.name) for cell in cells.CELLS], STEP),
            ([of_parameters(c, is_step) for c in cells.CELLS for is_step in BOOLS], PARAMETERS),
            ([of_init(cell.init) for cell in cells.CELLS], DRAWN),
            ([of_init(cells.init_gru)], [({"reset": "never"}, ("'never'", "after", "before"))]),
            ([cells.cell_named], [({"name": "LSTM"}, ("'LSTM'", "rnn", "lstm", "gru"))]),
            ([StackConfig, LanguageModelConfig, ClassifierConfig], STACK),
            ([LanguageModelConfig], LANGUAGE_MODEL),
            ([ClassifierConfig], CLASSIFIER),
            ([a_stack, a_step_of_a_stack], LAYERS_OF_STACK),
            ([a_loss], TARGETS),
            (map(of_classifier, ("logits", "sums")), READ + KEYS),
            ([*map(stack_of, ("dropout", "recurrent_dropout")), words_dropped], KEYS),
            ([of_classifier("sums")], JUDGED),
        )
        for call in calls
        for row in table
    ]
    + OTHERS,
)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[..., Any], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    assert_message(lambda: call(**changes), *parts)


@pytest.mark.parametrize("suffix", ["", "_step"])
@pytest.mark.parametrize("other", cells.CELLS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("cell", cells.CELLS, ids=lambda cell: cell.name)
def test_parameters_of_another_cell_name_the_function_to_use(
    cell: cells.Cell, other: cells.Cell, suffix: str
) -> None:
    name, params = cell.function + suffix, other.init(KEY, D, H)
    call, inputs = partial(getattr(lstm_jax, name), params), XS[0] if suffix else XS
    if cell is other:
        call(cells.zero_carry(params, B), inputs)
        return
    takes, used = f"{name} takes {cell.params.__name__}", f"use {other.function}{suffix}"
    assert_message(lambda: call(None, inputs), takes, type(params).__name__, used)

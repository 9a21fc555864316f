"""A cell of the user's own: declared as an LSTM is, it is one wherever a cell can be."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import B, D, H, T, assert_message, assert_near, flags, normals_like, with_gradients
from jax import random

import lstm_jax
from lstm_jax import LanguageModel, LanguageModelConfig, LSTMCarry, LSTMParams, StackConfig
from lstm_jax.sampling import FREE


class OwnParams(NamedTuple):
    """As `LSTMParams` are without a projection."""

    w_x: Any
    w_h: Any
    b: Any


def init(*args: Any, **options: Any) -> OwnParams:
    return OwnParams(*lstm_jax.init_lstm(*args, **options)[:3])


def step(params: OwnParams, carry: LSTMCarry, gates: Any, dot: Any) -> LSTMCarry:
    assert params.w_x is None and params.b is None
    i, f, g, o = jnp.split(gates + dot(carry.h, params.w_h), 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMCarry(jax.nn.sigmoid(o) * jnp.tanh(c), c)


OWN = lstm_jax.declare_cell("own", 4, OwnParams, LSTMCarry, init, step)


def as_lstm(tree: Any) -> Any:
    def is_own(node: Any) -> bool:
        return isinstance(node, OwnParams)

    return jax.tree.map(
        lambda node: LSTMParams(*node) if is_own(node) else node, tree, is_leaf=is_own
    )


@pytest.mark.slow
def test_a_stack_of_it_is_the_lstm_s(float64: None) -> None:
    """Both directions, chunks, masks, resets and dropout; values and gradients."""
    config = StackConfig(
        cell=OWN, hidden_size=H, bidirectional=True, dropout=0.5, dropout_place="outputs", remat=3
    )
    layers = lstm_jax.init_stack(random.key(0), config, D, jnp.float64)
    xs = normals_like(1, jnp.zeros((T, B, D), jnp.float64))

    def run(config: StackConfig, layers: Any) -> Any:
        def of(inputs: Any) -> Any:
            options = {**flags(1), "dropout_key": random.key(2)}
            return lstm_jax.run_stack(config, inputs[0], None, inputs[1], **options)

        return jax.jit(partial(with_gradients, of))((layers, xs))

    expected = run(replace(config, cell="lstm"), as_lstm(layers))
    assert_near(as_lstm(run(config, layers)), expected, 1e-12)


def test_a_language_model_of_it_writes_what_the_lstm_s_writes() -> None:
    template = np.full((T, B), FREE, np.int32)
    template[:2] = 1
    config = LanguageModelConfig(cell=OWN, hidden_size=H)
    params = LanguageModel(config, D).init(random.key(0))
    written, expected = (
        lstm_jax.generate(LanguageModel(each, D), of_it, template, key=random.key(1))
        for each, of_it in ((config, params), (replace(config, cell="lstm"), as_lstm(params)))
    )
    np.testing.assert_array_equal(written.tokens, expected.tokens)


def test_it_has_no_parallel_form() -> None:
    assert_message(
        lambda: StackConfig(cell=OWN, backend="parallel"), "cells of your own", "lstm_jax.parallel"
    )


def test_what_does_not_fit_is_refused_when_it_is_declared() -> None:
    """And leaves nothing behind: the parts declare a cell once they fit."""

    class NewParams(NamedTuple):
        w_x: Any
        w_h: Any
        b: Any

    parts = {
        "name": "new",
        "gates": 4,
        "params": NewParams,
        "carry": LSTMCarry,
        "init": lambda *args, **options: NewParams(*init(*args, **options)),
        "step": step,
    }
    for changes, words in (
        ({"params": LSTMParams}, ("params is LSTMParams", "the cell 'lstm'")),
        ({"name": None}, ("name is None", "give a text")),
        ({"name": ""}, ("name is empty",)),
        ({"gates": "4"}, ("gates is '4'",)),
        ({"params": dict}, ("params is <class 'dict'>", "NamedTuple")),
        ({"carry": tuple}, ("carry is <class 'tuple'>", "NamedTuple")),
        ({"carry": NewParams}, ("fields ('w_x', 'w_h', 'b')", "first must be h")),
        ({"step": None}, ("step is None", "function")),
        ({"inputs": lambda params, rows: rows[:1]}, ("inputs gives shape (1, 12)", "(2, 12)")),
        ({"inputs": lambda params, rows: (rows,)}, ("inputs gives shape None",)),
        ({"gates": 3}, ("w_x that init gives has shape (2, 12)", "expected (2, 9)", "3 gates")),
        ({"init": init}, ("init gives OwnParams", "expected NewParams")),
        ({"step": lambda params, carry, gates, dot: carry._replace(c=gates)}, ("step gives",)),
        ({"step": lambda params, carry, gates, dot: gates}, ("gives an array; expected LSTMC",)),
    ):
        assert_message(lambda: lstm_jax.declare_cell(**{**parts, **changes}), *words)  # noqa: B023
    for own, words, has_note in (
        (lambda params, carry, gates, dot: dot(carry.h, params.wh), "wh", False),
        (lambda params, carry, gates, dot: jax.nn.tanhh(gates), "tanhh", False),
        (lambda params, carry, gates, dot: dot(carry.h, params.w_x), "NoneType", True),
        (lambda params, carry, gates, dot: gates + params.b, "NoneType", True),
    ):
        with pytest.raises((AttributeError, TypeError), match=words) as caught:
            lstm_jax.declare_cell(**{**parts, "step": own})
        assert any(str(entry.path) == __file__ for entry in caught.traceback[1:])
        assert ("w_x and b are None" in str(getattr(caught.value, "__notes__", ""))) is has_note
    assert lstm_jax.declare_cell(**parts).step is not None
    assert_message(lambda: lstm_jax.declare_cell(**parts), "params is NewParams")


def test_init_may_have_names_of_its_own_and_take_all_options() -> None:
    class StrictParams(NamedTuple):
        w_x: Any
        w_h: Any
        b: Any
        more: Any

    def strict(key: Any, d: int, h: int, *, initialisation: Any, dtype: Any) -> StrictParams:
        drawn = lstm_jax.init_lstm(key, d, h, initialisation=initialisation, dtype=dtype)
        return StrictParams(*drawn[:3], more={"gain": jnp.ones(h, dtype)})

    def gained(params: Any, carry: Any, gates: Any, dot: Any) -> Any:
        h = jnp.tanh(
            jnp.split(gates, 4, axis=-1)[0] + dot(carry.h, params.w_h)[:, : carry.h.shape[1]]
        )
        return lstm_jax.GRUCarry(h * params.more["gain"])

    cell = lstm_jax.declare_cell("strict", 4, StrictParams, lstm_jax.GRUCarry, strict, gained)
    config = lstm_jax.StackConfig(cell=cell, hidden_size=4, remat=2)
    layers = lstm_jax.init_stack(jax.random.key(0), config, input_size=3)
    assert lstm_jax.run_stack(config, layers, None, jnp.ones((5, 2, 3)))[1].shape == (5, 2, 4)

"""Weights dropped for a training step, and words dropped for a sequence."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import DENSE_FORMS, UNITWISE_FORMS, assert_message, cases, init
from jax import random

from lstm_jax import LanguageModel, LanguageModelConfig, StackConfig, init_stack, weight_drop


def matrices(tree: Any) -> dict[str, Any]:
    """Every array by its path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@cases("form", DENSE_FORMS, "lstm_projected")
def test_recurrent_matrices_alone_lose_the_share_and_the_rest_is_scaled(form: str) -> None:
    params = init(form, random.key(0), 3, 64)
    found, before = (matrices(each) for each in (weight_drop(random.key(1), params, 0.25), params))
    for path in before:
        if path != ".w_h":
            np.testing.assert_array_equal(found[path], before[path])
    kept = np.asarray(found[".w_h"] != 0)
    np.testing.assert_allclose(found[".w_h"], np.where(kept, before[".w_h"] / 0.75, 0), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5


def test_what_is_drawn_depends_on_the_key_and_differs_by_layer_and_direction() -> None:
    config = StackConfig(cell="gru", layers=2, hidden_size=16, bidirectional=True)
    layers = init_stack(random.key(0), config, 16)
    masks = [
        np.asarray(leaf != 0).tobytes()
        for seed in (1, 1, 2)
        for path, leaf in matrices(weight_drop(random.key(seed), layers, 0.5)).items()
        if path.endswith(".w_h")
    ]
    assert masks[:4] == masks[4:8]
    assert len({*masks}) == 8


def test_a_dropped_word_is_zeros_wherever_it_stands_in_its_sequence() -> None:
    """And what is dropped differs from one sequence to the next; the others are scaled."""
    size = 40
    config = LanguageModelConfig(
        cell="rnn", hidden_size=size, embedding_size=size, word_dropout=0.25
    )
    model = LanguageModel(config, size)
    params = model.init(random.key(0))
    layer = params.layers[0]
    layer = layer._replace(w_x=0.1 * jnp.eye(size), w_h=0 * layer.w_h, b=0 * layer.b)
    params = params._replace(embedding=jnp.eye(size), layers=(layer,))
    tokens = jnp.tile(jnp.arange(size)[:, None], (2, 8))  # each of the words twice
    dropped = jnp.arctanh(model.hidden(params, None, tokens, dropout_key=random.key(1))[1]) / 0.1
    first, again = (np.einsum("tbt->tb", half) for half in np.split(np.asarray(dropped), 2))
    np.testing.assert_array_equal(first, again)
    kept = first > 0
    np.testing.assert_allclose(first, kept / 0.75, rtol=1e-3)
    assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5
    assert len({lane.tobytes() for lane in kept.T}) == 8
    with pytest.raises(ValueError, match=r"word_dropout is 0.5.*set that, or embedding_size"):
        LanguageModelConfig(word_dropout=0.5)


def test_what_does_not_fit_is_refused_and_an_integer_of_zero_drops_nothing() -> None:
    key, params = random.key(0), init("lstm", random.key(0), 3, 8)
    refused: list[tuple[Any, Any, Any, str]] = [
        *((key, init(form, key, 3, 4), 0.5, "no w_h among the parameters; choose a cell")
          for form in UNITWISE_FORMS),
        *((key, params, rate, "0 <= rate < 1") for rate in (1.0, -0.5, float("nan"), "0.5", 2)),
        (random.split(key), params, 0.5, "keys of shape (2,); give one"),
        (None, params, 0.5, "key is NoneType"),
        (random.PRNGKey(0), params, 0.5, "not a typed key; make it"),
    ]  # fmt: skip
    for *given, words in refused:
        assert_message(partial(weight_drop, *given), words)
    np.testing.assert_array_equal(weight_drop(key, params, 0).w_h, params.w_h)

"""Exported models: what they compute is what the library computes."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import assert_near
from jax import random

from lstm_jax import interop
from lstm_jax.classifier import Classifier, ClassifierConfig
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import FREE, generate, stack_rows

pytest.importorskip("flatbuffers", reason="flatbuffers, an optional extra, is not installed")

V, H = 11, 6


def language_model(dtype: Any = jnp.float32, **options: Any) -> tuple[LanguageModel, Any]:
    model = LanguageModel(LanguageModelConfig(hidden_size=H, **options), V)
    # Weights of some size, so that what is likely differs from place to place.
    return model, jax.tree.map(lambda leaf: 2 * leaf, model.init(random.key(0), dtype))


def ids(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def reloaded(exported: Any) -> Any:
    return jax.export.deserialize(exported.serialize())


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"cell": "rnn"}, "float32"),
        ({"layers": 2, "embedding_size": 4}, "float32"),
        ({"cell": "gru", "embedding_size": H, "tied": True}, "float32"),
        ({"cell": "gru", "gru_reset": "before", "embedding_size": 4}, "float32"),
        ({}, "float64"),
    ],
)
def test_steps_are_the_whole_sequence(options: dict[str, Any], dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        model, params = language_model(jnp.dtype(dtype), **options)
        step = reloaded(interop.export_step(model, params))
        assert step.platforms == ("cpu",)
        for batch in (1, 3):
            tokens = ids(batch, 4, batch)
            carry = jax.tree.leaves(model.zero_carry(params, batch))
            logits = []
            for token in tokens:
                *carry, last = step.call(*carry, token)
                logits.append(last)
            assert last.dtype == dtype
            final, expected = model.apply(params, None, jnp.asarray(tokens))
            found = (jnp.stack(logits), carry)
            tolerance = 1e-5 if dtype == "float32" else 1e-13
            assert_near(found, (expected, jax.tree.leaves(final)), tolerance)


@pytest.mark.slow
def test_samples_are_generates() -> None:
    model, params = language_model(layers=2, remat=4)
    sampler = reloaded(interop.export_sampler(model, params, 9, forbidden=[2, 7]))
    key = random.key(5)
    np.testing.assert_array_equal(random.key_data(key), [0, 5])
    for lengths, temperature, top_n in (((4, 4), 0.9, 0), ((1, 5, 3), 1.3, 4), ((0, 2), 0.0, 0)):
        prompts = [ids(row, length) for row, length in enumerate(lengths)]
        padded = np.full((max(lengths), len(lengths)), FREE, np.int32)
        for row, prompt in enumerate(prompts):
            padded[padded.shape[0] - len(prompt) :, row] = prompt
        found = sampler.call(padded, random.key_data(key), np.float32(temperature), np.int32(top_n))
        template, ends = stack_rows([np.append(p, [FREE] * 9) for p in prompts])
        texts = generate(
            model, params, template, key=key, lengths=ends,
            temperature=temperature, top_n=top_n, forbidden=[2, 7],
        )  # fmt: skip
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(found[:, row], texts.row(row)[length:])
        assert not np.isin(found, [2, 7]).any()


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "pooling": "max"},
        {"cell": "gru", "layers": 2, "pooling": "mean", "dense_size": 0},
        {"frozen_embedding": True},
    ],
)
def test_probabilities_are_the_classifiers(options: dict[str, Any]) -> None:
    model = Classifier(ClassifierConfig(embedding_size=5, hidden_size=H, **options), V)
    params = model.init(random.key(0))
    if model.config.frozen_embedding:
        params = params._replace(vectors=random.normal(random.key(1), (V, 5)))
    exported = reloaded(interop.export_classifier(model, params))
    for times, batch in ((5, 3), (2, 1)):
        tokens, mask = ids(0, times, batch), np.arange(times)[:, None] < np.array([2, 5, 0])[:batch]
        logits = model.logits(params, jnp.asarray(tokens), mask=jnp.asarray(mask))
        assert_near(exported.call(tokens, mask), jax.nn.sigmoid(logits), 1e-6)


def test_what_is_exported_has_a_signature_and_what_cannot_be_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, params = language_model()
    both = language_model(bidirectional=True)
    step = interop.export_step(model, params)
    arguments, results = interop.signature(step).split(" -> ")
    assert arguments == "(float32[b,6], float32[b,6], int32[b])"
    assert results == "(float32[b,6], float32[b,6], float32[b,11])"
    for export, message in (
        (partial(interop.export_step, *both), "bidirectional"),
        (partial(interop.export_sampler, *both, 4), "bidirectional"),
        (partial(interop.export_sampler, model, params, 0), "places is 0"),
        (partial(interop.export_step, model, params, platforms=["gpu"]), "platform is 'gpu'; ch"),
    ):
        with pytest.raises(ValueError, match=message):
            export()
    for name in [name for name in sys.modules if name.startswith("jax._src.export.serialization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(jax._src.export, "serialization", raising=False)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ValueError, match=r"pip install 'lstm-jax\[interop\]'"):
        interop.save_exported(tmp_path / "step.bin", step)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"layers": 2, "remat": 2}, {"embedding_size": 4}])
def test_a_model_takes_a_length_that_is_a_symbol(options: dict[str, Any]) -> None:
    """Layers in chunks take it whole, and an embedding is not folded into the first layer."""
    model, params = language_model(**options)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, b"), jnp.int32)

    def logits(tokens: Any) -> Any:
        return model.apply(params, None, tokens)[1]

    tokens = jnp.asarray(np.arange(12).reshape(6, 2) % model.vocabulary_size, jnp.int32)
    found = jax.export.export(jax.jit(logits))(shape).call(tokens)
    np.testing.assert_allclose(found, logits(tokens), rtol=1e-5, atol=1e-6)

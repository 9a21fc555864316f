"""The language model: losses, folded embeddings, chunks, tied weights, dropout of its outputs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import B, H, T, assert_near, assert_same_bits, cases
from core_cases import flags as mask_and_resets
from jax import random

from lstm_jax.losses import OutputParams
from lstm_jax.models import LanguageModel, LanguageModelConfig, TiedOutputParams, output_layer

V = 7

OPTIONS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "gru", "embedding_size": 3, "bidirectional": True},
    {"cell": "lstm", "embedding_size": H, "tied": True},
    {"layers": 2, "embedding_size": 3},
    {"cell": "gru", "gru_reset": "before"},
]


def build(vocabulary: int = V, dtype: Any = jnp.float64, **options: Any) -> Any:
    model = LanguageModel(LanguageModelConfig(**{"hidden_size": H, **options}), vocabulary)
    return model, model.init(random.key(0), dtype)


def batch(vocabulary: int = V) -> tuple[Any, Any, dict[str, Any]]:
    tokens, targets = np.random.default_rng(0).integers(0, vocabulary, (2, T, B), np.int32)
    return tokens, targets, mask_and_resets()


@partial(jax.jit, static_argnums=0)
def sums_and_gradients(
    model: LanguageModel, params: Any, carry: Any, tokens: Any, targets: Any, **flags: Any
) -> Any:
    def loss(params: Any) -> Any:
        sums, final = model.token_sums(params, carry, tokens, targets, **flags)
        return sums.loss / sums.weight, (sums, final)

    (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return results, gradients


@cases("options", OPTIONS, *OPTIONS[1:3])
def test_token_sums_are_those_of_all_logits(float64: None, options: dict[str, Any]) -> None:
    model, params = build(**options)
    tokens, targets, flags = batch()

    def naive(params: Any) -> Any:
        carry, logits = model.apply(params, None, tokens, **flags)
        likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        correct, mask = logits.argmax(-1) == targets, flags["mask"]
        loss = -(likelihoods[..., 0] * mask).sum()
        return loss / mask.sum(), ((loss, (correct & mask).sum(), mask.sum()), carry)

    (_, (sums, carry)), expected = jax.jit(jax.value_and_grad(naive, has_aux=True))(params)
    found, gradients = sums_and_gradients(model, params, None, tokens, targets, **flags)
    assert_near((tuple(found[0]), found[1]), (sums, carry), 1e-12)
    assert_near(gradients, expected, 1e-10)


@cases("bidirectional", [False, True], True)
def test_folded_embedding_is_the_gathered_one(float64: None, bidirectional: bool) -> None:
    """Fewer distinct tokens than places fold it; the same tokens of a larger vocabulary don't."""
    options = {"embedding_size": 3, "bidirectional": bidirectional, "layers": 2}
    folded, params = build(V, **options)
    gathered, larger = build(T * B, **options)
    tokens, targets, flags = batch()
    # The larger one's other tokens: never read, and impossible to predict.
    out = larger.output
    larger = larger._replace(
        embedding=larger.embedding.at[:V].set(params.embedding),
        layers=params.layers,
        output=OutputParams(
            out.w.at[:, :V].set(params.output.w).at[:, V:].set(0),
            out.b.at[:V].set(params.output.b).at[V:].set(-1e9),
        ),
    )
    results, gradients = sums_and_gradients(folded, params, None, tokens, targets, **flags)
    more, more_gradients = sums_and_gradients(gathered, larger, None, tokens, targets, **flags)
    assert_near(results, more, 1e-12)
    assert_near(gradients.layers, more_gradients.layers, 1e-10)
    assert_near(gradients.embedding, more_gradients.embedding[:V], 1e-10)
    assert_near(gradients.output.w, more_gradients.output.w[:, :V], 1e-10)
    np.testing.assert_array_equal(more_gradients.embedding[V:], 0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("vocabulary", "embedding_size"), [(V, None), (V, 3), (T * B, 3)])
def test_tokens_outside_the_vocabulary_are_the_nearest_one(
    float64: None, vocabulary: int, embedding_size: int | None, backend: str
) -> None:
    """However they enter: looked up in gates, folded, gathered, or a step at a time."""
    model, params = build(vocabulary, embedding_size=embedding_size, backend=backend)
    hidden, step = jax.jit(model.hidden), jax.jit(model.step)
    carry = model.zero_carry(params, 2)
    found, expected = (
        (hidden(params, None, tokens), step(params, carry, tokens[0]))
        for tokens in (np.array([[-2, vocabulary + 3]] * T), np.array([[0, vocabulary - 1]] * T))
    )
    assert_near(found, expected, 1e-12)


@cases("vocabulary", [V, 4 * T * B], 4 * T * B)  # folded, and gathered
def test_a_tied_embedding_s_gradient_is_the_sum_of_both_uses(
    float64: None, vocabulary: int
) -> None:
    tied, params = build(vocabulary, embedding_size=H, tied=True)
    plain, other = build(vocabulary, embedding_size=H)
    assert isinstance(params.output, TiedOutputParams)
    assert isinstance(other.output, OutputParams)
    other = params._replace(output=output_layer(params))
    tokens, targets, flags = batch(vocabulary=vocabulary)
    results, gradients = sums_and_gradients(tied, params, None, tokens, targets, **flags)
    expected, apart = sums_and_gradients(plain, other, None, tokens, targets, **flags)
    assert_near(results, expected, 1e-12)
    assert_near(gradients.embedding, apart.embedding + apart.output.w.T, 1e-12)
    assert_near((gradients.layers, gradients.output.b), (apart.layers, apart.output.b), 1e-12)


@pytest.mark.parametrize("per", ["time", "sequence"])
def test_output_dropout_scales_what_the_output_layer_sees(float64: None, per: str) -> None:
    options: dict[str, Any] = {"output_dropout": 0.25, "output_dropout_per": per}
    model, params = build(hidden_size=64, **options)
    tokens = np.arange(400, dtype=np.int32).reshape(100, 4) % V
    hidden = jax.jit(model.hidden)
    carry, expected = hidden(params, None, tokens)
    dropped_carry, found = hidden(params, None, tokens, dropout_key=random.key(1))
    assert_near(dropped_carry, carry, 1e-12)
    kept = np.asarray(found != 0)
    assert_near(found, jnp.where(kept, expected / 0.75, 0), 1e-12)
    if per == "sequence":
        assert (kept == kept[0]).all()
        kept = kept[:1]
    # Five standard errors; no two times or sequences share a mask.
    assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5
    masks = kept.reshape(-1, 64)
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_no_times_have_no_loss_and_keep_the_carry() -> None:
    model, params = build(dtype=jnp.float32, bidirectional=True, layers=2, remat=2, dropout=0.5)
    tokens, targets, flags = batch()
    carry = jax.tree.map(jnp.ones_like, model.zero_carry(params, B))
    flags = {name: flag[:0] for name, flag in flags.items()}
    sums, final = model.token_sums(
        params, carry, tokens[:0], targets[:0], **flags, dropout_key=random.key(0)
    )
    assert_same_bits(final, carry)
    assert not any(sums)

"""Filters and the loop that fills templates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import random

from lstm_jax import sampling
from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import FREE, Filters, choose, generate, keep_top_n

MODEL = LanguageModel(LanguageModelConfig(cell="gru", layers=2, hidden_size=8), 13)
PARAMS = MODEL.init(random.key(1))
PROMPT = np.array([[3, 1], [4, 1], [5, 9]], np.int32)


def filters(temperature: jax.Array, top_n: jax.Array) -> Filters:
    return Filters(temperature, top_n, jnp.zeros(1, bool))


def template(length: int, prompt: np.ndarray = PROMPT) -> np.ndarray:
    free = np.full((length, prompt.shape[1]), FREE, np.int32)
    return np.concatenate([prompt, free])


@given(seed=st.integers(0, 99), n=st.integers(1, 20), levels=st.integers(1, 30))
def test_top_n_keeps_exactly_the_n_largest_and_of_equals_the_first(
    seed: int, n: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-levels, levels + 1, (5, 20)) / 3).astype(np.float32)
    found = np.asarray(keep_top_n(jnp.asarray(logits), jnp.int32(n)))
    for row, kept in zip(logits, found, strict=True):
        best = np.lexsort((np.arange(20), -row))[:n]
        expected = np.full(20, -np.inf, np.float32)
        expected[best] = row[best]
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("n", [0, 20, 99])
def test_top_n_of_nothing_or_more_than_all_keeps_all(n: int) -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20)), jnp.float32)
    np.testing.assert_array_equal(keep_top_n(logits, jnp.int32(n)), logits)


def test_top_n_holds_for_infinite_and_extreme_logits() -> None:
    logits = jnp.array([[-jnp.inf, 3e38, -3e38, 0.0, -0.0, 1e-40]], jnp.float32)
    kept = np.isfinite(np.asarray(keep_top_n(logits, jnp.int32(2))))
    assert kept.tolist() == [[False, True, False, False, False, True]]


def test_drawn_frequencies_are_the_renormalised_probabilities() -> None:
    """Chi-square against a float64 softmax of the five largest, at temperature 0.7."""
    logits = np.array([2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.0], np.float64)
    draws = 40_000
    kept = np.argsort(-logits)[:5]
    weights = np.zeros(7)
    weights[kept] = np.exp(logits[kept] / 0.7)
    expected = draws * weights / weights.sum()
    uniform = random.uniform(random.key(5), (draws,))
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, 7))
    found = choose(rows, uniform, filters(jnp.float32(0.7), jnp.int32(5)))
    counts = np.bincount(np.asarray(found), minlength=7)
    assert counts[weights == 0].sum() == 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: 0.1 per cent of fair draws lie above


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1, 0, dtype=np.float32)])
def test_a_token_of_no_probability_is_never_drawn(uniform: float) -> None:
    logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf, 1.0, -jnp.inf]])
    found = choose(logits, jnp.array([uniform]), filters(jnp.float32(1), jnp.int32(0)))
    assert int(found[0]) in (1, 3)


def test_temperature_zero_takes_the_most_likely_and_the_first_of_equals() -> None:
    logits = jnp.array([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    found = choose(logits, jnp.array([0.9, 0.9]), filters(jnp.float32(0), jnp.int32(0)))
    assert found.tolist() == [1, 0]


def test_forbidden_tokens_are_never_drawn_and_the_rest_keep_their_odds() -> None:
    logits = jnp.array([3.0, 1.0, 0.0, 2.0])
    uniform = random.uniform(random.key(2), (20_000,))
    rows = jnp.broadcast_to(logits, (20_000, 4))
    forbidden = jnp.array([True, False, False, False])
    for top_n, support in ((0, [1, 2, 3]), (2, [1, 3])):
        found = choose(rows, uniform, Filters(jnp.float32(1), jnp.int32(top_n), forbidden))
        counts = np.bincount(np.asarray(found), minlength=4)
        odds = np.zeros(4)
        odds[support] = np.exp(np.asarray(logits)[support])
        np.testing.assert_allclose(counts / 20_000, odds / odds.sum(), atol=0.015)
    greedy = Filters(jnp.float32(0), jnp.int32(0), forbidden)
    assert int(choose(logits[None], uniform[:1], greedy)[0]) == 3


def test_what_is_generated_has_no_forbidden_token_but_given_ones_stand() -> None:
    likely = int(generate(MODEL, PARAMS, template(1), key=random.key(0), temperature=0)[-1, 0])
    places = np.concatenate([[[likely, likely]], template(200)]).astype(np.int32)
    found = generate(MODEL, PARAMS, places, key=random.key(0), forbidden=[likely, 2])
    assert (found[0] == likely).all()
    assert not np.isin(found[4:], [likely, 2]).any()
    assert set(np.unique(found[4:])) == set(range(13)) - {likely, 2}


@pytest.mark.parametrize(("forbidden", "said"), [([13], "no id"), (range(13), "every token")])
def test_nonsense_of_what_is_forbidden_is_refused(forbidden: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(MODEL, PARAMS, template(2), key=random.key(0), forbidden=forbidden)


def test_a_bidirectional_model_writes_only_where_that_is_allowed() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=8, layers=2, bidirectional=True), 13)
    params = model.init(random.key(1))
    with pytest.raises(ValueError, match="sees the future"):
        generate(model, params, template(3), key=random.key(0))
    found = generate(
        model, params, template(3), key=random.key(0), temperature=0, allow_bidirectional=True
    )
    carry, token = model.zero_carry(params, 2), None
    for time in range(6):  # token by token, both directions, as if each were a whole sequence
        if time >= 3:
            assert token is not None
            np.testing.assert_array_equal(found[time], token)
        carry, hs = model.hidden(params, carry, jnp.asarray(found[time : time + 1]))
        token = model.logits(params, hs[0]).argmax(-1)


def greedy_by_hand(known: list[int | None]) -> list[int]:
    """A plain Python loop over whole prefixes."""
    tokens: list[int] = []
    for given_token in known:
        if given_token is not None:
            tokens.append(given_token)
            continue
        _, logits = MODEL.apply(PARAMS, None, jnp.asarray(tokens, jnp.int32)[:, None])
        tokens.append(int(logits[-1, 0].argmax()))
    return tokens


def test_greedy_continuation_is_the_argmax_of_the_model_s_logits() -> None:
    found = generate(MODEL, PARAMS, template(9), key=random.key(0), temperature=0)
    for row in range(2):
        known: list[int | None] = [*PROMPT[:, row].tolist(), *[None] * 9]
        assert found[:, row].tolist() == greedy_by_hand(known)


def test_known_places_of_a_template_stand_and_steer_what_follows() -> None:
    known: list[int | None] = [2, None, None, 7, None, 7, 7, None]
    places = np.array([[FREE if k is None else k] for k in known], np.int32)
    found = generate(MODEL, PARAMS, places, key=random.key(0), temperature=0)
    assert found[:, 0].tolist() == greedy_by_hand(known)


def test_the_first_place_may_be_free() -> None:
    found = generate(MODEL, PARAMS, np.full((4, 3), FREE), key=random.key(0), top_n=3)
    assert found.shape == (4, 3)
    assert found.min() >= 0
    assert found.max() < 13


def test_a_template_without_free_places_comes_back() -> None:
    np.testing.assert_array_equal(generate(MODEL, PARAMS, PROMPT, key=random.key(0)), PROMPT)


def test_same_key_same_text_whatever_the_batch_or_the_length() -> None:
    key = random.key(3)
    wide = generate(MODEL, PARAMS, np.repeat(template(12)[:, :1], 4, axis=1), key=key)
    narrow = generate(MODEL, PARAMS, template(12)[:, :1], key=key)
    np.testing.assert_array_equal(wide[:, :1], narrow)
    longer = generate(MODEL, PARAMS, template(30)[:, :1], key=key)
    np.testing.assert_array_equal(longer[:15], narrow)
    assert len({tuple(column) for column in wide.T}) > 1
    other = generate(MODEL, PARAMS, template(12)[:, :1], key=random.key(4))
    assert (other != narrow).any()


def test_changed_filters_and_lengths_recompile_nothing() -> None:
    generate(MODEL, PARAMS, template(13), key=random.key(0))
    compiled = sampling._fill._cache_size()
    for length, temperature, top_n in ((13, 0.5, 3), (16, 0.0, 0), (10, 1.5, 7)):
        generate(
            MODEL,
            PARAMS,
            template(length),
            key=random.key(1),
            temperature=temperature,
            top_n=top_n,
        )
    assert sampling._fill._cache_size() == compiled


@pytest.mark.parametrize("embedding_size", [None, 4])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_one_step_at_a_time_equals_the_scan(cell: str, embedding_size: int | None) -> None:
    config = LanguageModelConfig(
        cell=cell,  # type: ignore[arg-type]
        layers=2,
        hidden_size=6,
        embedding_size=embedding_size,
    )
    model = LanguageModel(config, 11)
    params = model.init(random.key(0))
    tokens = random.randint(random.key(1), (7, 3), 0, 11)
    _, whole = model.hidden(params, None, tokens)
    carry = model.zero_carry(params, 3)
    for time in range(7):
        carry, hidden = model.step(params, carry, tokens[time])
        np.testing.assert_allclose(hidden, whole[time], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        (np.zeros((2, 2)), {}, "integers"),
        (np.zeros(3, np.int32), {}, "shape"),
        (np.full((2, 1), 13), {}, "below 13"),
        (np.full((2, 1), -2), {}, "-2"),
        (template(2), {"temperature": -1.0}, "temperature is -1"),
        (template(2), {"temperature": float("nan")}, "temperature is nan"),
        (template(2), {"top_n": -1}, "top_n is -1"),
    ],
)
def test_nonsense_is_refused(bad: np.ndarray, options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(MODEL, PARAMS, bad, key=random.key(0), **options)  # type: ignore[arg-type]


def test_a_bidirectional_model_is_refused() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=4, bidirectional=True), 13)
    params = model.init(random.key(0))
    with pytest.raises(ValueError, match="sees the future"):
        generate(model, params, template(2), key=random.key(0))


def test_absorbing_a_prompt_leaves_no_trace_of_its_padding() -> None:
    for length in (1, 2, 3, 5, 8):
        prompt = np.arange(length, dtype=np.int32)[:, None]
        found = generate(MODEL, PARAMS, template(3, prompt), key=random.key(0), temperature=0)
        known: list[int | None] = [*range(length), None, None, None]
        assert found[:, 0].tolist() == greedy_by_hand(known)


def test_generation_holds_on_a_default_device_of_float64() -> None:
    with jax.enable_x64(True):
        params = MODEL.init(random.key(1), jnp.float64)
        found = generate(MODEL, params, template(4), key=random.key(0))
        assert found.shape == (7, 2)

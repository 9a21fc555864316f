"""The loop that fills templates: whole, in streams, and the best of several."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import FREE, best_of, decode, generate, stack_rows, stream, with_weights

MODEL = LanguageModel(LanguageModelConfig(cell="gru", layers=2, hidden_size=8), 13)
PARAMS = MODEL.init(random.key(1))
PROMPT = np.array([[3, 1], [4, 1], [5, 9]], np.int32)


def template(length: int, prompt: np.ndarray = PROMPT) -> np.ndarray:
    free = np.full((length, prompt.shape[1]), FREE, np.int32)
    return np.concatenate([prompt, free])


def test_what_is_generated_has_no_forbidden_token_but_given_ones_stand() -> None:
    likely = int(
        generate(MODEL, PARAMS, template(1), key=random.key(0), temperature=0).tokens[-1, 0]
    )
    places = np.concatenate([[[likely, likely]], template(200)]).astype(np.int32)
    found = generate(MODEL, PARAMS, places, key=random.key(0), forbidden=[likely, 2]).tokens
    assert (found[0] == likely).all()
    assert not np.isin(found[4:], [likely, 2]).any()
    assert set(np.unique(found[4:])) == set(range(13)) - {likely, 2}


def test_a_bidirectional_model_writes_only_where_that_is_allowed() -> None:
    model = LanguageModel(LanguageModelConfig(hidden_size=8, layers=2, bidirectional=True), 13)
    params = model.init(random.key(1))
    with pytest.raises(ValueError, match="sees the future"):
        generate(model, params, template(3), key=random.key(0))
    found = generate(
        model, params, template(3), key=random.key(0), temperature=0, allow_bidirectional=True
    ).tokens
    hidden, logits = jax.jit(model.hidden), jax.jit(model.logits)
    carry, token = model.zero_carry(params, 2), None
    for time in range(6):  # token by token, both directions, as if each were a whole sequence
        if time >= 3:
            assert token is not None
            np.testing.assert_array_equal(found[time], token)
        carry, hs = hidden(params, carry, jnp.asarray(found[time : time + 1]))
        token = logits(params, hs[0]).argmax(-1)


@jax.jit
def every_logits(tokens: jax.Array) -> jax.Array:
    """Logits `[33, V]` of each next token of up to 32 tokens, the first from nothing.

    What comes after a place doesn't bear on it, so whatever fills the 32 up is no matter.
    """
    _, hs = MODEL.hidden(PARAMS, None, tokens[:, None])
    return MODEL.logits(PARAMS, jnp.concatenate([jnp.zeros_like(hs[:1]), hs]))[:, 0]


def greedy_by_hand(known: list[int | None], penalty: float = 1.0) -> list[int]:
    """A plain Python loop over whole prefixes."""
    tokens: list[int] = []
    for given_token in known:
        if given_token is None:
            filled = jnp.zeros(32, jnp.int32).at[: len(tokens)].set(jnp.array(tokens, jnp.int32))
            logits = np.asarray(every_logits(filled))[len(tokens)].copy()
            for token in set(tokens):
                logits[token] *= 1 / penalty if logits[token] > 0 else penalty
            given_token = int(logits.argmax())
        tokens.append(given_token)
    return tokens


def test_greedy_continuation_is_the_argmax_of_the_model_s_logits() -> None:
    found = generate(MODEL, PARAMS, template(9), key=random.key(0), temperature=0).tokens
    for row in range(2):
        known: list[int | None] = [*PROMPT[:, row].tolist(), *[None] * 9]
        assert found[:, row].tolist() == greedy_by_hand(known)


def test_known_places_of_a_template_stand_and_steer_what_follows() -> None:
    known: list[int | None] = [2, None, None, 7, None, 7, 7, None]
    places = np.array([[FREE if k is None else k] for k in known], np.int32)
    found = generate(MODEL, PARAMS, places, key=random.key(0), temperature=0).tokens
    assert found[:, 0].tolist() == greedy_by_hand(known)


def test_the_first_place_may_be_free() -> None:
    found = generate(MODEL, PARAMS, np.full((4, 3), FREE), key=random.key(0), top_n=3).tokens
    assert found.shape == (4, 3)
    assert found.min() >= 0
    assert found.max() < 13


def test_a_template_without_free_places_comes_back() -> None:
    found = generate(MODEL, PARAMS, PROMPT, key=random.key(0))
    np.testing.assert_array_equal(found.tokens, PROMPT)


def test_same_key_same_text_whatever_the_batch_or_the_length() -> None:
    key = random.key(3)
    wide = generate(MODEL, PARAMS, np.repeat(template(12)[:, :1], 4, axis=1), key=key).tokens
    narrow = generate(MODEL, PARAMS, template(12)[:, :1], key=key).tokens
    np.testing.assert_array_equal(wide[:, :1], narrow)
    longer = generate(MODEL, PARAMS, template(30)[:, :1], key=key).tokens
    np.testing.assert_array_equal(longer[:15], narrow)
    assert len({tuple(column) for column in wide.T}) > 1
    other = generate(MODEL, PARAMS, template(12)[:, :1], key=random.key(4)).tokens
    assert (other != narrow).any()


def test_changed_filters_and_lengths_recompile_nothing() -> None:
    generate(MODEL, PARAMS, template(13), key=random.key(0))
    compiled = decode.decode._cache_size()
    for length, temperature, top_n in ((13, 0.5, 3), (16, 0.0, 0), (10, 1.5, 7)):
        generate(
            MODEL,
            PARAMS,
            template(length),
            key=random.key(1),
            temperature=temperature,
            top_n=top_n,
        )
    assert decode.decode._cache_size() == compiled


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
    _, whole = jax.jit(model.hidden)(params, None, tokens)
    carry, step = model.zero_carry(params, 3), jax.jit(model.step)
    for time in range(7):
        carry, hidden = step(params, carry, tokens[time])
        np.testing.assert_allclose(hidden, whole[time], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        (np.zeros((2, 2)), {}, "integers"),
        (np.zeros(3, np.int32), {}, "shape"),
        (np.full((2, 1), 13), {}, "below 13"),
        (np.full((2, 1), -2), {}, "-2"),
        (template(2), {"temperature": -1.0}, "temperature is -1"),
        (template(2), {"lengths": [5]}, "lengths are"),
        (template(2), {"lengths": [5, 6]}, "from 1 to 5"),
        (template(2), {"lengths": [0, 5]}, "from 1 to 5"),
        (template(2), {"lengths": [2.5, 5.0]}, "lengths are float64"),
        (template(2), {"stops": [[]]}, "stop sequence is empty"),
        (template(2), {"stops": [[13]]}, "stop token 13"),
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
        assert found.row(0).tolist() == greedy_by_hand(known)


def test_draws_are_the_same_with_64_bit_types() -> None:
    def drawn() -> np.ndarray:
        return np.asarray(generate(MODEL, PARAMS, template(20), key=random.key(3)).tokens)

    with jax.enable_x64(True):
        wide = drawn()
    np.testing.assert_array_equal(wide, drawn())


def test_generation_holds_on_a_default_device_of_float64() -> None:
    with jax.enable_x64(True):
        params = MODEL.init(random.key(1), jnp.float64)
        found = generate(MODEL, params, template(4), key=random.key(0))
        assert found.tokens.shape == (7, 2)


ROWS = [[3, FREE, FREE, FREE, FREE], [4, 5, 1, 9, FREE, 2, FREE], [FREE, FREE], [7, 7, FREE]]


def test_rows_of_different_lengths_are_each_what_they_are_alone() -> None:
    stacked, lengths = stack_rows(ROWS)
    found = generate(MODEL, PARAMS, stacked, key=random.key(0), lengths=lengths, temperature=0)
    assert found.lengths.tolist() == [len(row) for row in ROWS]
    for index, row in enumerate(ROWS):
        known = [None if token == FREE else token for token in row]
        assert found.row(index).tolist() == greedy_by_hand(known)
        assert (found.tokens[len(row) :, index] == FREE).all()


def test_a_row_s_draws_are_those_of_its_number_whatever_the_rows_around_it() -> None:
    stacked, lengths = stack_rows(ROWS)
    key = random.key(5)
    together = generate(MODEL, PARAMS, stacked, key=key, lengths=lengths)
    for index, row in enumerate(ROWS):
        alone = generate(MODEL, PARAMS, np.array(row)[:, None], key=key, first_row=index)
        np.testing.assert_array_equal(alone.row(0), together.row(index))


def test_three_rows_padded_to_four_are_the_first_three_of_four_bit_for_bit() -> None:
    stacked, lengths = stack_rows(ROWS)
    options = {"key": random.key(6), "log_probabilities": True}
    four = generate(MODEL, PARAMS, stacked, lengths=lengths, **options)
    three = generate(MODEL, PARAMS, stacked[:, :3], lengths=lengths[:3], **options)
    for index in range(3):
        np.testing.assert_array_equal(three.row(index), four.row(index))
        assert three.log_probabilities is not None
        assert four.log_probabilities is not None
        np.testing.assert_array_equal(
            three.log_probabilities[: lengths[index], index],
            four.log_probabilities[: lengths[index], index],
        )


@pytest.mark.slow
@settings(max_examples=8)
@given(places=st.sampled_from([1, 3, 8, 20]), seed=st.integers(0, 99), stop=st.booleans())
def test_a_stream_s_pieces_are_the_whole_text(places: int, seed: int, stop: bool) -> None:
    stacked, lengths = stack_rows(ROWS)
    stacked = np.concatenate([stacked, np.full((9, 4), FREE, np.int32)])
    options = {
        "key": random.key(seed),
        "lengths": lengths + 9,
        "stops": [[1, 4], [4, 8, 4], [10]] if stop else [],
        "top_n": 6,
        "repetition_penalty": 1.2,
    }
    whole = generate(MODEL, PARAMS, stacked, **options)
    parts = list(stream(MODEL, PARAMS, stacked, places=places, **options))
    for index, row in enumerate(ROWS):
        known = row.index(FREE)
        written = np.concatenate([part[index] for part in parts])
        np.testing.assert_array_equal(written, whole.row(index)[known:])


@pytest.mark.parametrize("places", [1, 3, 64])
def test_a_stop_sequence_ends_its_row_and_is_left_out(places: int) -> None:
    free = np.concatenate([PROMPT, np.full((40, 2), FREE, np.int32)])
    plain = generate(MODEL, PARAMS, free, key=random.key(7)).tokens
    first, second = plain[10:12, 0], plain[14:17, 1]
    found = generate(MODEL, PARAMS, free, key=random.key(7), stops=[first, second])
    assert found.stopped.all()
    for row in range(2):
        written = plain[3:, row].tolist()
        ends = [
            place
            for place in range(len(written))
            for stop in (first.tolist(), second.tolist())
            if written[: place + 1][-len(stop) :] == stop
        ]
        end = min(ends) + 1
        length = max(
            len(stop) for stop in (first, second) if written[:end][-len(stop) :] == stop.tolist()
        )
        assert found.row(row).tolist() == plain[: 3 + end - length, row].tolist()
        assert (found.tokens[found.lengths[row] :, row] == FREE).all()
    pieces = list(
        stream(MODEL, PARAMS, free, key=random.key(7), stops=[first, second], places=places)
    )
    for row in range(2):
        written = np.concatenate([piece[row] for piece in pieces])
        np.testing.assert_array_equal(written, found.row(row)[3:])


def test_given_tokens_are_no_part_of_a_stop_sequence() -> None:
    places = np.array([[FREE], [6], [6], [FREE], [6], [6]], np.int32)
    found = generate(MODEL, PARAMS, places, key=random.key(0), stops=[[6]], forbidden=[6])
    assert not found.stopped[0]
    assert found.lengths[0] == 6


def test_log_probabilities_are_the_model_s_own_whatever_the_filters() -> None:
    stacked, lengths = stack_rows(ROWS)
    found = generate(
        MODEL, PARAMS, stacked, key=random.key(2), lengths=lengths, top_n=2, temperature=0.5,
        log_probabilities=True,
    )  # fmt: skip
    assert found.log_probabilities is not None
    for index, row in enumerate(ROWS):
        known, tokens = row.index(FREE), found.row(index)
        assert np.isnan(found.log_probabilities[:known, index]).all()
        filled = jnp.zeros(32, jnp.int32).at[: len(tokens)].set(tokens)
        logits = np.asarray(every_logits(filled))[1:]
        expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens) - 1), tokens[1:]]
        scores = found.log_probabilities[:, index]
        np.testing.assert_allclose(
            scores[max(known, 1) : len(row)], expected[max(known, 1) - 1 :], rtol=1e-5, atol=1e-6
        )
    assert np.isnan(found.log_probabilities[2:, 2]).all()


def test_the_prompt_s_tokens_and_all_that_follow_are_penalised() -> None:
    free = np.concatenate([PROMPT, np.full((12, 2), FREE, np.int32)])
    found = generate(MODEL, PARAMS, free, key=random.key(1), temperature=0, repetition_penalty=10)
    known: list[list[int | None]] = [[*PROMPT[:, row].tolist(), *[None] * 12] for row in range(2)]
    penalised = [greedy_by_hand(row, penalty=10) for row in known]
    assert [found.row(row).tolist() for row in range(2)] == penalised
    assert penalised != [greedy_by_hand(row) for row in known]


@pytest.mark.slow
def test_the_best_of_several_is_the_likeliest_with_what_is_given_later() -> None:
    places = np.array([[2, 1], [FREE, FREE], [FREE, 3], [5, FREE], [5, 7]], np.int32)
    key = random.key(3)
    found = best_of(MODEL, PARAMS, places, 6, key=key)
    every = generate(MODEL, PARAMS, np.repeat(places, 6, axis=1), key=key, log_probabilities=True)
    assert every.log_probabilities is not None
    assert found.log_probabilities is not None
    means = np.nanmean(every.log_probabilities, axis=0).reshape(2, 6)
    for row in range(2):
        best = 6 * row + int(means[row].argmax())
        np.testing.assert_array_equal(found.tokens[:, row], every.tokens[:, best])
        assert np.nanmean(found.log_probabilities[:, row]) == pytest.approx(means[row].max())
    one = best_of(MODEL, PARAMS, places, 1, key=key)
    np.testing.assert_array_equal(one.tokens, generate(MODEL, PARAMS, places, key=key).tokens)
    with pytest.raises(ValueError, match="number is 0"):
        best_of(MODEL, PARAMS, places, 0, key=key)


def test_a_prompt_longer_than_one_scan_is_absorbed_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 8)
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(0, 13, length).tolist(), FREE, FREE] for length in (21, 3, 16, 8)]
    stacked, lengths = stack_rows(rows)
    found = generate(MODEL, PARAMS, stacked, key=random.key(0), lengths=lengths, temperature=0)
    for index, row in enumerate(rows):
        known: list[int | None] = [*row[:-2], None, None]
        assert found.row(index).tolist() == greedy_by_hand(known)


@pytest.mark.slow
def test_bfloat16_weights_halve_the_matrices_and_all_but_keep_the_logits() -> None:
    model, params = with_weights(MODEL, PARAMS, "bfloat16")
    assert params.layers[0].w_h.dtype == jnp.bfloat16
    assert params.layers[0].b.dtype == jnp.float32
    _, plain = MODEL.apply(PARAMS, None, jnp.asarray(PROMPT))
    _, rounded = model.apply(params, None, jnp.asarray(PROMPT))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, plain, atol=0.02)
    found = generate(model, params, template(5), key=random.key(0))
    assert found.lengths.tolist() == [8, 8]


@pytest.mark.parametrize("rows", [[], [[]], [[1.5]], [[[1]]]])
def test_rows_that_are_no_templates_are_refused(rows: list[object]) -> None:
    with pytest.raises(ValueError, match="row"):
        stack_rows(rows)  # type: ignore[arg-type]

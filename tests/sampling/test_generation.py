"""The loop that fills templates: whole, in streams, and the best of several."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random
from sampling_cases import BIDIRECTIONAL, MODEL, PARAMS, V, greedy_by_hand, log_softmax_after

from lstm_jax.models import LanguageModel, LanguageModelConfig
from lstm_jax.sampling import (
    FREE,
    best_of,
    decode,
    generate,
    generation,
    stack_rows,
    stream,
    with_weights,
)

PROMPT = np.array([[3, 1], [4, 1], [5, 9]], np.int32)
KEY = random.key(3)
write = partial(generate, MODEL, PARAMS)


def template(length: int, prompt: np.ndarray = PROMPT) -> np.ndarray:
    return np.concatenate([prompt, np.full((length, prompt.shape[1]), FREE, np.int32)])


MODELS = {
    "one-hot": LanguageModelConfig(layers=2, hidden_size=8),
    "embedding": LanguageModelConfig(
        cell="gru", gru_reset="before", hidden_size=8, embedding_size=6
    ),
    "tied": LanguageModelConfig(cell="gru", hidden_size=8, embedding_size=8, tied=True),
    "normalised": LanguageModelConfig(cell="ln-lstm", layers=2, hidden_size=8, embedding_size=8),
    "independent units": LanguageModelConfig(cell="diag-lstm", layers=2, hidden_size=8),
    "activation": LanguageModelConfig(hidden_size=8, activation="relu"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_text_alone_is_written_as_among_others(name: str) -> None:
    model = LanguageModel(MODELS[name], V)
    params = jax.tree.map(lambda leaf: 2 * leaf, model.init(random.key(2)))
    options: Any = {"key": KEY, "temperature": 0, "log_probabilities": True}
    several = generate(model, params, template(8), **options)
    alone = generate(model, params, template(8)[:, :1], **options)
    np.testing.assert_array_equal(alone.tokens[:, 0], several.tokens[:, 0])
    assert alone.log_probabilities is not None and several.log_probabilities is not None
    scores = several.log_probabilities[:, :1]
    np.testing.assert_allclose(alone.log_probabilities, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_no_weights_are_moved_at_each_token(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a loop of the compiled program computes has the shape of any."""
    model = LanguageModel(MODELS["tied"], size := 50)
    programs = []

    def decoded(*arguments: Any) -> Any:
        programs.append(decode.decode.lower(*arguments).compile().as_text())
        return decode.decode(*arguments)

    monkeypatch.setattr(generation, "decode", decoded)
    generate(model, params := model.init(KEY), template(4)[:, :rows], key=KEY)

    def by_hand(params: Any, carry: Any, hidden: Any) -> Any:
        def write_one(state: Any, _: None) -> Any:
            token = model.logits(params, state[1]).argmax(-1)
            return model.step(params, state[0], token), token

        return jax.lax.scan(write_one, (carry, hidden), None, length=4)

    started = (model.zero_carry(params, rows), jnp.ones((rows, 8)))
    programs.append(jax.jit(by_hand).lower(params, *started).compile().as_text())
    found = rf"= f32\[(?:{size},8|8,{size}|24,8|8,24)\]\S+ (?!parameter|get-tuple-element)\w"
    for program in programs:
        blocks = re.split(r"\n(?=%|ENTRY )", program)
        loops = [each for each in blocks if not re.match("ENTRY|%(fused|wrapped)_", each)]
        assert len(loops) < len(blocks) and not re.search(found, "\n".join(loops))


def test_what_is_generated_has_no_forbidden_token_but_given_ones_stand() -> None:
    likely = int(write(template(1), key=KEY, temperature=0).tokens[-1, 0])
    places = np.concatenate([[[likely, likely]], template(200)]).astype(np.int32)
    found = write(places, key=KEY, forbidden=[likely, 2]).tokens
    assert (found[0] == likely).all()
    assert set(np.unique(found[4:])) == set(range(V)) - {likely, 2}


def test_a_bidirectional_model_writes_where_that_is_allowed() -> None:
    model, params = BIDIRECTIONAL, BIDIRECTIONAL.init(random.key(1))
    options = {"key": KEY, "temperature": 0, "allow_bidirectional": True}
    found = generate(model, params, template(3), **options).tokens
    hidden, logits = jax.jit(model.hidden), jax.jit(model.logits)
    carry, token = model.zero_carry(params, 2), found[3]
    for time in range(6):  # token by token, both directions, as if each were a whole sequence
        if time >= 3:
            np.testing.assert_array_equal(found[time], token)
        carry, hs = hidden(params, carry, jnp.asarray(found[time : time + 1]))
        token = logits(params, hs[0]).argmax(-1)


ROWS = [[3, FREE, FREE, FREE, FREE], [4, 5, 1, 9, FREE, 2, FREE], [FREE, FREE], [7, 7, FREE]]
PROMPTS = [[*range(length), FREE, FREE, FREE] for length in (1, 2, 3, 5, 8)]
LONG = [[*(each % V for each in range(length)), FREE, FREE] for length in (21, 3, 16, 8)]


@pytest.mark.parametrize("rows", [ROWS, PROMPTS, LONG])
def test_each_row_of_a_batch_is_what_a_plain_loop_over_its_prefixes_finds_likeliest(
    rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its length, where its known places are, and in how many scans they are read."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 8)
    stacked, lengths = stack_rows(rows)
    found = write(stacked, key=KEY, lengths=lengths, temperature=0)
    assert found.lengths.tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        assert found.row(index).tolist() == greedy_by_hand(row)
        assert (found.tokens[len(row) :, index] == FREE).all()


@pytest.mark.parametrize("name", MODELS)
def test_prompts_read_together_in_parts_end_where_each_ends_alone(
    name: str, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an embedding goes through the first layer's product once for all parts."""
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 4)
    model, rng = LanguageModel(MODELS[name], V), np.random.default_rng(0)
    params = model.init(random.key(2), jnp.float64)
    for lengths in ((22, 3, 16, 0), (3, 1, 2), (4, 8)):
        prompts = [rng.integers(0, V, length) for length in lengths]
        carry, hidden_BH = decode.prefill(model, params, prompts)
        for row, prompt in enumerate(prompts):
            alone, hs = model.hidden(params, None, jnp.asarray(prompt[:, None]))
            hs = jnp.concatenate([jnp.zeros_like(hs, shape=(1, 1, 8)), hs])
            expected = ([leaf[0] for leaf in jax.tree.leaves(alone)], hs[-1, 0])
            found = ([leaf[row] for leaf in jax.tree.leaves(carry)], hidden_BH[row])
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), found, expected)


def test_a_template_without_free_places_comes_back() -> None:
    np.testing.assert_array_equal(write(PROMPT, key=KEY).tokens, PROMPT)


def test_same_key_same_text_whatever_the_batch_or_the_length() -> None:
    first = template(12)[:, :1]
    narrow = write(first, key=KEY).tokens
    wide = write(np.repeat(first, 4, axis=1), key=KEY).tokens
    np.testing.assert_array_equal(wide[:, :1], narrow)
    longer = write(template(30)[:, :1], key=KEY).tokens
    np.testing.assert_array_equal(longer[:15], narrow)
    assert len({tuple(column) for column in wide.T}) > 1
    assert (write(first, key=random.key(4)).tokens != narrow).any()


def test_changed_filters_stops_and_lengths_recompile_nothing() -> None:
    write(template(13), key=KEY, stops=[[1] * 6])
    compiled = decode.decode._cache_size()
    for length, temperature, top_n in ((13, 0.5, 3), (16, 0.0, 0), (10, 1.5, 7)):
        options = {"temperature": temperature, "top_n": top_n, "stops": [[2] * (4 + top_n % 3)]}
        write(template(length), key=random.key(1), **options)
    assert decode.decode._cache_size() == compiled


@pytest.mark.slow
def test_draws_are_the_same_with_64_bit_types() -> None:
    with jax.enable_x64(True):
        wide = write(template(20), key=KEY).tokens
        params = MODEL.init(random.key(1), jnp.float64)
        assert generate(MODEL, params, template(4), key=KEY).tokens.shape == (7, 2)
    np.testing.assert_array_equal(wide, write(template(20), key=KEY).tokens)


@pytest.mark.slow
def test_a_row_s_draws_are_those_of_its_number_whatever_the_rows_around_it() -> None:
    """Of three rows, padded to four, bit for bit."""
    stacked, lengths = stack_rows(ROWS)
    options: dict[str, Any] = {"key": KEY, "log_probabilities": True}
    four = write(stacked, lengths=lengths, **options)
    three = write(stacked[:, :3], lengths=lengths[:3], **options)
    assert three.log_probabilities is not None and four.log_probabilities is not None
    for index, row in enumerate(ROWS):
        alone = write(np.array(row)[:, None], key=KEY, first_row=index)
        np.testing.assert_array_equal(alone.row(0), four.row(index))
    for index in range(3):
        np.testing.assert_array_equal(three.row(index), four.row(index))
        np.testing.assert_array_equal(
            *(each.log_probabilities[: lengths[index], index] for each in (three, four))
        )


@pytest.mark.slow
@settings(max_examples=8)
@given(places=st.sampled_from([1, 3, 8, 20]), seed=st.integers(0, 99), stop=st.booleans())
def test_a_stream_s_pieces_are_the_whole_text(places: int, seed: int, stop: bool) -> None:
    stacked, lengths = stack_rows(ROWS)
    stacked = np.concatenate([stacked, np.full((9, 4), FREE, np.int32)])
    options = {"key": random.key(seed), "lengths": lengths + 9, "top_n": 6}
    options |= {"stops": [[1, 4], [4, 8, 4], [10]] * stop, "repetition_penalty": 1.2}
    whole = write(stacked, **options)
    parts = list(stream(MODEL, PARAMS, stacked, places=places, **options))
    for index, row in enumerate(ROWS):
        written = np.concatenate([part[index] for part in parts])
        np.testing.assert_array_equal(written, whole.row(index)[row.index(FREE) :])


@pytest.mark.parametrize("places", [1, 3, 64])
def test_a_stop_sequence_ends_its_row_and_is_left_out(places: int) -> None:
    plain = write(template(40), key=KEY).tokens
    stops = [plain[10:12, 0].tolist(), plain[14:17, 1].tolist()]
    found = write(template(40), key=KEY, stops=stops)
    pieces = list(stream(MODEL, PARAMS, template(40), key=KEY, stops=stops, places=places))
    assert found.stopped.all()
    for row in range(2):
        written = plain[3:, row].tolist()
        end, length = min(
            (end, -len(stop))
            for end in range(len(written) + 1)
            for stop in stops
            if written[:end][-len(stop) :] == stop
        )
        assert found.row(row).tolist() == plain[: 3 + end + length, row].tolist()
        assert (found.tokens[found.lengths[row] :, row] == FREE).all()
        streamed = np.concatenate([piece[row] for piece in pieces])
        np.testing.assert_array_equal(streamed, found.row(row)[3:])


def test_given_tokens_are_no_part_of_a_stop_sequence() -> None:
    places = np.array([[FREE], [6], [6], [FREE], [6], [6]], np.int32)
    found = write(places, key=KEY, stops=[[6]], forbidden=[6])
    assert not found.stopped[0]
    assert found.lengths[0] == 6


def test_log_probabilities_are_the_model_s_own_whatever_the_filters() -> None:
    stacked, lengths = stack_rows(ROWS)
    options = {"lengths": lengths, "top_n": 2, "temperature": 0.5, "log_probabilities": True}
    found = write(stacked, key=KEY, **options)
    assert found.log_probabilities is not None
    for index, row in enumerate(ROWS):
        known, tokens = row.index(FREE), found.row(index)
        scores = found.log_probabilities[:, index]
        assert np.isnan(scores[:known]).all()
        expected = log_softmax_after(tokens)[np.arange(len(tokens)), tokens]
        first = max(known, 1)
        np.testing.assert_allclose(scores[first : len(row)], expected[first:], rtol=1e-5, atol=1e-6)
    assert np.isnan(found.log_probabilities[2:, 2]).all()


def test_the_prompt_s_tokens_and_all_that_follow_are_penalised() -> None:
    found = write(template(12), key=KEY, temperature=0, repetition_penalty=10)
    rows = template(12).T.tolist()
    penalised = [greedy_by_hand(row, penalty=10) for row in rows]
    assert [found.row(row).tolist() for row in range(2)] == penalised
    assert penalised != [greedy_by_hand(row) for row in rows]


@pytest.mark.slow
def test_the_best_of_several_is_the_likeliest_with_what_is_given_later() -> None:
    places = np.array([[2, 1], [FREE, FREE], [FREE, 3], [5, FREE], [5, 7]], np.int32)
    found = best_of(MODEL, PARAMS, places, 6, key=KEY)
    every = write(np.repeat(places, 6, axis=1), key=KEY, log_probabilities=True)
    assert every.log_probabilities is not None
    assert found.log_probabilities is not None
    means = np.nanmean(every.log_probabilities, axis=0).reshape(2, 6)
    for row in range(2):
        best = 6 * row + int(means[row].argmax())
        np.testing.assert_array_equal(found.tokens[:, row], every.tokens[:, best])
        assert np.nanmean(found.log_probabilities[:, row]) == pytest.approx(means[row].max())
    one = best_of(MODEL, PARAMS, places, 1, key=KEY)
    np.testing.assert_array_equal(one.tokens, write(places, key=KEY).tokens)


@pytest.mark.slow
def test_bfloat16_weights_halve_the_matrices_and_all_but_keep_the_logits() -> None:
    model, params = with_weights(MODEL, PARAMS, "bfloat16")
    assert params.layers[0].w_h.dtype == jnp.bfloat16
    assert params.layers[0].b.dtype == jnp.float32
    _, plain = MODEL.apply(PARAMS, None, jnp.asarray(PROMPT))
    _, rounded = model.apply(params, None, jnp.asarray(PROMPT))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, plain, atol=0.05)
    assert generate(model, params, template(5), key=KEY).lengths.tolist() == [8, 8]

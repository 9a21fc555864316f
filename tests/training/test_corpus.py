"""From a text to lanes: what is trained on, what is held out, and that nothing is both."""

from __future__ import annotations

import numpy as np
import pytest
from tasks import TEXT, config

from lstm_jax.systems.corpus import make_corpus
from lstm_jax.text import NOT_COUNTED, Lanes


def test_the_end_of_the_text_is_held_out_and_every_token_of_it_predicted_once() -> None:
    corpus = make_corpus(config(heldout_share=0.2), TEXT)
    assert corpus.heldout is not None and isinstance(corpus.training, Lanes)
    held = round(0.2 * len(TEXT))
    counted = corpus.heldout.mask & (corpus.heldout.targets != NOT_COUNTED)
    assert counted.sum() == held
    assert corpus.vocabulary.decode(corpus.heldout.targets.T[counted.T]) == TEXT[-held:]
    trained = corpus.vocabulary.decode(corpus.training.tokens.T.reshape(-1))
    assert len(trained) <= len(TEXT) - held + corpus.training.batch_size


@pytest.mark.parametrize("place", ["end", "lanes"])
def test_a_held_out_lane_begins_with_the_text_before_it(place: str) -> None:
    corpus = make_corpus(config(heldout_share=0.2, heldout_from=place), TEXT)
    assert corpus.heldout is not None
    times = config().sequence_length
    inputs, targets = corpus.heldout.inputs, corpus.heldout.targets
    assert (targets[:times] == NOT_COUNTED).all() and (targets[times:] != NOT_COUNTED).all()
    for lane in range(inputs.shape[1]):
        lane_text = corpus.vocabulary.decode(inputs[corpus.heldout.mask[:, lane], lane])
        assert lane_text in TEXT
    if place == "end":
        held = round(0.2 * len(TEXT))
        first = corpus.vocabulary.decode(inputs[: times + 1, 0])
        assert first == TEXT[len(TEXT) - held - times - 1 : len(TEXT) - held]


def test_the_end_of_every_lane_is_held_out_as_a_published_notebook_has_it() -> None:
    corpus = make_corpus(config(heldout_share=0.25, heldout_from="lanes"), TEXT)
    whole = make_corpus(config(heldout_share=0.0), TEXT).training
    assert corpus.heldout is not None
    assert isinstance(corpus.training, Lanes) and isinstance(whole, Lanes)
    assert corpus.training.batches == int(whole.batches * 0.75)
    assert corpus.heldout.mask.all()
    rows = len(corpus.training.tokens) - 1
    np.testing.assert_array_equal(corpus.training.tokens, whole.tokens[: rows + 1])
    times = config().sequence_length
    np.testing.assert_array_equal(corpus.heldout.inputs[times:], whole.tokens[rows:-1])
    np.testing.assert_array_equal(corpus.heldout.targets[times:], whole.tokens[rows + 1 :])


@pytest.mark.parametrize("place", ["end", "lanes"])
def test_a_share_of_nothing_holds_nothing_out(place: str) -> None:
    assert make_corpus(config(heldout_share=0.0, heldout_from=place), TEXT).heldout is None


def test_a_share_of_every_lane_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves one part empty"):
        make_corpus(config(heldout_share=0.999, heldout_from="lanes"), TEXT)

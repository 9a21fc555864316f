"""The automaton of stop sequences against a search at every place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.sampling.stops import make_stops

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=5)


@given(stops=sequences, tokens=st.lists(st.integers(0, 2), max_size=40))
def test_a_state_is_what_a_search_at_every_place_finds(
    stops: list[list[int]], tokens: list[int]
) -> None:
    automaton = make_stops(3, stops)
    state = 0
    for place, token in enumerate(tokens):
        state = int(automaton.after[state, token])
        read = tokens[: place + 1]
        complete = [len(stop) for stop in stops if read[-len(stop) :] == stop]
        assert automaton.length[state] == max(complete, default=0)
        begun = [
            part
            for stop in stops
            for part in range(1, len(stop) + 1)
            if read[-part:] == stop[:part]
        ]
        assert automaton.depth[state] == max(begun, default=0)


def test_nothing_ever_stops_where_there_are_no_sequences() -> None:
    automaton = make_stops(7)
    assert automaton.after.shape == (1, 7)
    assert not automaton.after.any()
    assert not automaton.length.any()


def test_states_are_a_power_of_two() -> None:
    for length in range(1, 9):
        states = len(make_stops(2, [[1] * length]).after)
        assert states >= length + 1
        assert states & (states - 1) == 0


def test_too_many_or_empty_or_unknown_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_stops(5, [[1], []])
    with pytest.raises(ValueError, match="stop token 5"):
        make_stops(5, [[1, 5]])
    with pytest.raises(ValueError, match="too many"):
        make_stops(1 << 20, [np.arange(100)])

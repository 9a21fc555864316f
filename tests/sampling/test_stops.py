"""The automaton of stop sequences against a search at every place."""

from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.sampling.stops import make_stops

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=5)


@given(stops=sequences, tokens=st.lists(st.integers(0, 2), max_size=40))
def test_a_state_is_what_a_search_at_every_place_finds(
    stops: list[list[int]], tokens: list[int]
) -> None:
    automaton, state = make_stops(3, stops), 0
    for place, token in enumerate(tokens):
        state = int(automaton.after[state, token])
        read = tokens[: place + 1]
        begun = [
            (part, part == len(stop))
            for stop in stops
            for part in range(1, len(stop) + 1)
            if read[-part:] == stop[:part]
        ]
        assert automaton.depth[state] == max((part for part, _ in begun), default=0)
        assert automaton.length[state] == max((part for part, whole in begun if whole), default=0)

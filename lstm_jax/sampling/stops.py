"""Stop sequences, found by an automaton that the jitted loop steps through.

Shapes: S states, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

_MOST_ENTRIES = 1 << 26


class Stops(NamedTuple):
    """An Aho-Corasick automaton over token ids; in state 0 nothing has matched.

    References:
        Aho and Corasick (1975), Efficient string matching.
    """

    after: Ids  # `[S, V]`, the state after a token
    length: Ids  # `[S]`, length of the longest stop sequence complete in a state, or 0
    depth: Ids  # `[S]`, number of last tokens that may be the beginning of a stop sequence


def make_stops(vocabulary_size: int, sequences: Sequence[Sequence[int]] = ()) -> Stops:
    """Build the automaton that finds any of these sequences as soon as it is complete.

    The number of states is a power of two, so that other sequences seldom recompile. Raises
    ValueError for an empty sequence, an invalid token id, or too many tokens in all.
    """
    children: list[dict[int, int]] = [{}]
    length, depth = [0], [0]
    for sequence in sequences:
        if not len(sequence):
            raise ValueError("a stop sequence is empty; give at least one token")
        state = 0
        for token in map(int, sequence):
            if not 0 <= token < vocabulary_size:
                raise ValueError(
                    f"stop token {token} is no id; they are from 0 to below {vocabulary_size}"
                )
            if token not in children[state]:
                children[state][token] = len(children)
                children.append({})
                length.append(0)
                depth.append(depth[state] + 1)
            state = children[state][token]
        length[state] = len(sequence)
    states = 1 << (len(children) - 1).bit_length()
    if states * vocabulary_size > _MOST_ENTRIES:
        raise ValueError(
            f"stop sequences of {len(children) - 1} tokens are too many for a vocabulary of "
            f"{vocabulary_size}; give fewer or shorter ones"
        )
    after = _transitions(children, length, vocabulary_size)
    rest = states - len(children)
    return Stops(
        np.pad(after, ((0, rest), (0, 0))),
        np.pad(np.array(length, np.int32), (0, rest)),
        np.pad(np.array(depth, np.int32), (0, rest)),
    )


def _transitions(children: list[dict[int, int]], length: list[int], vocabulary_size: int) -> Ids:
    """State after each token; also sets `length` where a shorter sequence ends a longer prefix."""
    after = np.zeros((len(children), vocabulary_size), np.int32)
    after[0, list(children[0])] = list(children[0].values())
    fallback = [0] * len(children)
    queue = deque(children[0].values())
    while queue:
        state = queue.popleft()
        # The longest proper suffix of the matched tokens that also begins a sequence.
        shorter = fallback[state]
        after[state] = after[shorter]
        length[state] = length[state] or length[shorter]
        for token, child in children[state].items():
            fallback[child] = int(after[shorter, token])
            after[state, token] = child
            queue.append(child)
    return after

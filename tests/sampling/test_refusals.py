"""What can't be written, searched or scored is refused by one line that says why."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from jax import random
from sampling_cases import BIDIRECTIONAL, MODEL, PARAMS

from lstm_jax.sampling import FREE, beam_search, best_of, generate, score, stack_rows
from lstm_jax.sampling.filters import make_filters
from lstm_jax.sampling.stops import make_stops

BOTH = (BIDIRECTIONAL, BIDIRECTIONAL.init(random.key(0)))
TWO = np.array([[3, 1], [4, 1], [FREE, FREE]], np.int32)
NAN, INFINITY = float("nan"), float("inf")
write = partial(generate, key=random.key(0))

REFUSED: list[tuple[Callable[[], Any], str]] = [
    *(
        (partial(write, MODEL, PARAMS, template, **options), said)
        for template, options, said in (
            (np.zeros((2, 2)), {}, "integers"),
            (np.zeros(3, np.int32), {}, "shape"),
            (np.full((2, 1), 13), {}, "below 13"),
            (np.full((2, 1), -2), {}, "-2"),
            (TWO, {"lengths": [3]}, "lengths are"),
            (TWO, {"lengths": [3, 4]}, "from 1 to 3"),
            (TWO, {"lengths": [0, 3]}, "from 1 to 3"),
            (TWO, {"lengths": [2.5, 3.0]}, "lengths are float64"),
            (TWO, {"stops": [[]]}, "stop sequence is empty"),
            (TWO, {"stops": [[13]]}, "stop token 13"),
        )
    ),
    *(
        (partial(make_filters, 13, **options), said)
        for options, said in (
            ({"temperature": -1.0}, "temperature is -1"),
            ({"temperature": NAN}, "temperature is nan"),
            ({"top_n": -1}, "top_n is -1"),
            ({"top_p": 0.0}, "top_p is 0"),
            ({"top_p": 1.1}, "top_p is 1.1"),
            ({"top_p": NAN}, "top_p is nan"),
            ({"min_p": -0.1}, "min_p is -0.1"),
            ({"min_p": 1.5}, "min_p is 1.5"),
            ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
            ({"repetition_penalty": INFINITY}, "repetition_penalty is inf"),
            ({"forbidden": [13]}, "no id"),
            ({"forbidden": [-1]}, "no id"),
            ({"forbidden": range(13)}, "every token"),
        )
    ),
    *(
        (partial(beam_search, MODEL, PARAMS, template, **{"beams": 2} | options), said)
        for template, options, said in (
            ([[1, FREE]], {}, "shape"),
            ([1, 13], {}, "below 13"),
            ([1, FREE], {"beams": 0}, "beams is 0"),
            ([1, FREE], {"length_penalty": -1.0}, "length_penalty is -1"),
        )
    ),
    *(
        (partial(score, MODEL, PARAMS, texts, **options), said)
        for texts, options, said in (
            ([[1, 2], [3]], {}, "two for a text"),
            ([[1, 2], [1, 13]], {}, "below 13"),
            ([[1, 2], [-1, 2]], {}, "from 0"),
            ([[1, 2], [0.5, 1.0]], {}, "float64"),
            ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
            ([[1, 2], [3]], {"contexts": [[1]]}, "1 contexts for 2"),
            ([[1, 2], [3]], {"contexts": [[1], [0.5]]}, "context 1 is float64"),
            ([[1, 2], []], {"contexts": [[1], [2, 3]]}, "text 1 is"),
        )
    ),
    (partial(make_stops, 1 << 20, [np.arange(100)]), "too many"),
    *((partial(stack_rows, rows), "row") for rows in ([], [[]], [[1.5]], [[[1]]])),
    (partial(best_of, MODEL, PARAMS, TWO, 0, key=random.key(0)), "number is 0"),
    (partial(write, *BOTH, TWO), "sees the future"),
    (partial(beam_search, *BOTH, [1, FREE], beams=2), "sees the future"),
    (partial(score, *BOTH, [[1, 2]]), "sees the future"),
]


@pytest.mark.parametrize("key", [None, 0, random.PRNGKey(0), random.split(random.key(0))])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^key .*(jax\.random\.key|give one)"):
        generate(MODEL, PARAMS, TWO, key=key)


@pytest.mark.parametrize(("call", "said"), REFUSED)
def test_nonsense_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        call()
    assert "\n" not in str(refused.value)

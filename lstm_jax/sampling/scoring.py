"""Likelihood of given texts under a language model.

Shapes: T time, B batch.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax import Array

from lstm_jax.checks import require_count
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling.decode import PREFILL_CHUNK, power_of_two, refuse_bidirectional
from lstm_jax.sampling.stops import Ids


class TextScore(NamedTuple):
    """Likelihood of a text.

    Attributes:
        log_probabilities: float32, in nats, of each token, `[T]`; without a context `[T - 1]`, as
            the first token has no predecessor.

    Examples:
        >>> scores = np.log(np.array([0.5, 0.125], np.float32))
        >>> round(lstm_jax.sampling.TextScore(scores).perplexity, 3)
        4.0
    """

    log_probabilities: npt.NDArray[np.float32]

    @property
    def log_likelihood(self) -> float:
        """Sum of the log-probabilities, in nats."""
        return math.fsum(self.log_probabilities.tolist())

    @property
    def perplexity(self) -> float:
        """Perplexity of the text; see the function `perplexity`."""
        return perplexity(self.log_likelihood, len(self.log_probabilities))


def perplexity(log_likelihood: float, tokens: int) -> float:
    """exp(-log_likelihood / tokens), or infinity if that overflows a float.

    Examples:
        >>> round(lstm_jax.sampling.perplexity(log_likelihood=-2 * np.log(8), tokens=2), 3)
        8.0
    """
    try:
        return math.exp(-log_likelihood / tokens)
    except OverflowError:
        return math.inf


def score(
    model: LanguageModel,
    params: LanguageModelParams,
    texts: Sequence[npt.ArrayLike],
    *,
    contexts: Sequence[npt.ArrayLike] | None = None,
    batch_size: int = 16,
) -> list[TextScore]:
    """Compute the log-probabilities of each text's tokens, starting from a zero carry.

    Similar lengths are batched and run in chunks of time, so long texts take no more memory.

    Args:
        model: a language model; not bidirectional.
        params: its parameters.
        texts: token ids `[T_b]`, at least two per text, or one after a context.
        contexts: token ids `[C_b]` that precede each text; they are read but not scored.
        batch_size: number of texts per batch.

    Raises:
        ValueError: a text is too short or contains invalid token ids, the numbers of contexts and
            texts differ, or the model is bidirectional.

    Examples:
        >>> model = lstm_jax.LanguageModel(lstm_jax.LanguageModelConfig(hidden_size=4), 5)
        >>> (score,) = lstm_jax.sampling.score(model, model.init(jax.random.key(0)), [[1, 2, 3]])
        >>> score.log_probabilities.shape
        (2,)
    """
    refuse_bidirectional(model)
    require_count("batch_size", batch_size)
    before = [()] * len(texts) if contexts is None else contexts
    if len(before) != len(texts):
        raise ValueError(f"there are {len(before)} contexts for {len(texts)} texts; give each one")
    arrays = [_row(model, *each) for each in zip(range(len(texts)), before, texts, strict=True)]
    firsts = [max(1, np.size(context)) for context in before]
    order = sorted(range(len(arrays)), key=lambda index: len(arrays[index]))
    found: dict[int, npt.NDArray[np.float32]] = {}
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        rows = [arrays[index] for index in indices]
        found |= dict(zip(indices, _score_batch(model, params, rows, batch_size), strict=True))
    return [TextScore(found[index][first - 1 :]) for index, first in enumerate(firsts)]


def _score_batch(
    model: LanguageModel,
    params: LanguageModelParams,
    rows: list[Ids],
    batch_size: int,
) -> list[npt.NDArray[np.float32]]:
    longest = max(map(len, rows)) - 1
    times = min(PREFILL_CHUNK, power_of_two(longest))
    padded = -(-longest // times) * times
    size = power_of_two(min(batch_size, len(rows)))
    tokens = np.zeros((padded + 1, size), np.int32)
    mask = np.zeros((padded, size), np.bool_)
    for index, row in enumerate(rows):
        tokens[: len(row), index] = row
        mask[: len(row) - 1, index] = True
    carry = model.zero_carry(params, size)
    losses = []
    for first in range(0, padded, times):
        stretch = slice(first, first + times)
        inputs, targets = tokens[:-1][stretch], tokens[1:][stretch]
        carry, loss = _losses(model, params, carry, inputs, targets, mask[stretch])
        losses.append(np.asarray(loss))
    scores = -np.concatenate(losses)
    return [scores[: len(row) - 1, index] for index, row in enumerate(rows)]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _losses(
    model: LanguageModel,
    params: LanguageModelParams,
    carry: Any,
    inputs_TB: Array,
    targets_TB: Array,
    mask_TB: Array,
) -> tuple[Any, Array]:
    _, scores, carry = model.token_scores(params, carry, inputs_TB, targets_TB, mask=mask_TB)
    return carry, scores.loss


def _row(model: LanguageModel, index: int, context: npt.ArrayLike, text: npt.ArrayLike) -> Ids:
    parts = {"context": np.asarray(context), "text": np.asarray(text)}
    if not parts["context"].size:
        del parts["context"]
    for name, found in parts.items():
        is_ids = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
        if not is_ids or len(found) < 3 - len(parts):
            raise ValueError(
                f"{name} {index} is {found.dtype} of shape {found.shape}; expected token ids, at "
                "least one, or two for a text without a context, whose first token is not "
                "predicted"
            )
        if found.min() < 0 or found.max() >= model.vocabulary_size:
            raise ValueError(
                f"{name} {index} has entries from {found.min()} to {found.max()}; expected token "
                f"ids from 0 to below {model.vocabulary_size}"
            )
    return np.concatenate(list(parts.values())).astype(np.int32)

"""A model that writes, and plain loops over all that it has read."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from lstm_jax.models import LanguageModel, LanguageModelConfig

V = 13
MODEL = LanguageModel(LanguageModelConfig(cell="gru", layers=2, hidden_size=8), V)
PARAMS = jax.tree.map(lambda leaf: 2 * leaf, MODEL.init(random.key(1)))
BIDIRECTIONAL = LanguageModel(LanguageModelConfig(hidden_size=8, layers=2, bidirectional=True), V)


@jax.jit
def _every_logits(tokens: jax.Array) -> jax.Array:
    """`[33, V]` of each next token of 32 tokens, the first from nothing."""
    _, hs = MODEL.hidden(PARAMS, None, tokens[:, None])
    return MODEL.logits(PARAMS, jnp.concatenate([jnp.zeros_like(hs[:1]), hs]))[:, 0]


def logits_after(tokens: list[int]) -> np.ndarray:
    """Logits of the first token, and of what follows each of up to 32 tokens."""
    # What comes after a place doesn't bear on it, so whatever fills the 32 up is no matter.
    filled = np.zeros(32, np.int32)
    filled[: len(tokens)] = tokens
    return np.array(_every_logits(filled), np.float64)[: len(tokens) + 1]


def log_softmax_after(tokens: list[int]) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits_after(tokens)), np.float64)


def greedy_by_hand(known: list[int], penalty: float = 1.0) -> list[int]:
    """A template filled by a plain Python loop over whole prefixes; a free place is negative."""
    tokens: list[int] = []
    for given in known:
        if given < 0:
            logits = logits_after(tokens)[-1]
            for token in set(tokens):
                logits[token] *= 1 / penalty if logits[token] > 0 else penalty
            given = int(logits.argmax())
        tokens.append(given)
    return tokens

"""Run folders of earlier versions, and what is expected of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from lstm_jax.sampling import FREE, generate
from lstm_jax.systems.reviews import probabilities

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = FIXTURES / "runs"
CLASSIFIER = "reviews"
_TEXTS = {
    "lstm": "7 bottles of milk",
    "gru": "bottles of milk in row",
    "poems": "avkab",
    "poems_in_one_file": "avkab",
}
_REVIEWS = ("a dull film with no music", "a fine film with much music")


def expectations_of(name: str) -> dict[str, Any]:
    """A loss and a greedy text of a language model; probabilities of a classifier."""
    if name == CLASSIFIER:
        model, params, vocabulary, config = lstm_jax.load(RUNS / name)
        found = probabilities(model, params, vocabulary, config, _REVIEWS, 2)
        return {"probabilities": [float(value) for value in found]}
    model, params, vocabulary, _ = lstm_jax.load(RUNS / name)
    ids = jnp.asarray(vocabulary.encode_prompt(_TEXTS[name]))[:, None]
    sums, _ = model.token_sums(params, None, ids[:-1], ids[1:])
    template = np.full((24, 1), FREE)
    template[: len(ids)] = ids
    texts = generate(model, params, template, key=jax.random.key(0), temperature=0.0)
    return {"loss": float(sums.loss / sums.weight), "tokens": texts.row(0).tolist()}

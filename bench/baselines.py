"""Baselines for trained systems: published figures, and n-grams on the same split."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import LYRICS
from bench.ngram import NGramResult, heldout_loss
from bench.runs import Run, settings
from lstm_jax.systems import read_system
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig, PoemsSystem
from lstm_jax.text import NOT_COUNTED, heldout_split

_ORDERS = {"char": 6, "word": 2, "token": 2}
_POEMS_ORDER = 3
NOT_AT_HAND = "data not at hand"  # Replaces an n-gram's figure if the data is missing or different.


PUBLISHED: tuple[tuple[str, str, str, int, int, bool, dict[str, float]], ...] = (
    # A notebook on the same novel; whether it holds out the end or parts of the lanes is unknown.
    ("1.488 at step 990, 1.292 at epoch 20 (split not stated)",
     "anna", "lstm", 2, 512, False, {"heldout_share": 0.1}),
    # A TensorFlow recipe on the full works, without held-out text.
    ("about 5.99 (full works)", "shakespeare", "lstm", 1, 128, False, {"heldout_share": 0.0}),
    # The first two figures: PyTorch, published settings. The last: a book. Both on other lyrics.
    ("1.041 at epoch 40, 1.016 at 160 (other text); a book's 1.02 at 40",
     LYRICS, "lstm", 1, 256, False, {}),
    # PyTorch, published settings, on other lyrics; so are the next two.
    ("1.021 at epoch 40, 1.017 at 160 (other text)", LYRICS, "gru", 1, 256, False, {}),
    ("1.105 at epoch 40, 1.014 at 160 (other text)", LYRICS, "lstm", 2, 256, False, {}),
    ("1.00 (other text)", LYRICS, "lstm", 1, 256, True, {}),
)  # fmt: skip
"""Published figures by preset and settings: cell, layers, hidden size, bidirectional, others.

None are known for poems, or for reviews of this kind.
"""


def published(config: TrainConfig) -> str | None:
    """Published figures comparable to a run with these settings."""
    kept = settings(config)
    names = ("cell", "layers", "hidden_size", "bidirectional")
    network = [kept.get(f"model.{name}") for name in names]
    for text, preset, *asked, others in PUBLISHED:
        if preset == config.preset and asked == network and others.items() <= kept.items():
            return text
    return None


def ngrams(runs: Sequence[Run]) -> list[NGramResult] | str | None:
    """Held-out losses of n-grams on the splits of runs that differ in their seed alone.

    Or why they are unavailable, or None if they do not apply. Named corpora are downloaded.
    """
    found: dict[int | None, NGramResult] = {}
    results = []
    for run in runs:
        config = run.config
        if not config.heldout_share or config.preset == LYRICS:
            return None
        if not isinstance(config, LanguageConfig | PoemsConfig):
            return None
        seed = config.seed if config.heldout_from == "random" else None  # it draws the split
        if seed not in found:
            result = _fit(config, run)
            if isinstance(result, str):
                return result
            found[seed] = result
        results.append(found[seed])
    return results


def _fit(config: LanguageConfig | PoemsConfig, run: Run) -> NGramResult | str:
    try:
        system: Any = read_system(_with_corpora(config), kept=run.path)
    except (ValueError, OSError):
        return NOT_AT_HAND
    if system.sha256 != run.sha256:
        return NOT_AT_HAND
    size = len(system.vocabulary)
    if isinstance(system, PoemsSystem):
        poems = (system.training, system.held_out)
        return heldout_loss(*poems, order=_POEMS_ORDER, vocabulary_size=size, goes_on=False)
    corpus = system.corpus
    if config.heldout_from == "end":
        training, heldout = ([each] for each in heldout_split(corpus.ids, config.heldout_share))
    else:
        training = list(corpus.training.tokens.T)
        heldout = [targets[targets != NOT_COUNTED] for targets in corpus.heldout.targets.T]
    order = _ORDERS[system.config.tokens]
    return heldout_loss(training, heldout, order=order, vocabulary_size=size)


def _with_corpora(config: LanguageConfig | PoemsConfig) -> LanguageConfig | PoemsConfig:
    """The settings with a data file given by name only looked up in the corpora's folder."""
    folder = os.environ.get("LSTM_JAX_DATA")
    if not (folder and config.data) or Path(config.data).exists():
        return config
    named = Path(folder, config.data)
    return dataclasses.replace(config, data=str(named)) if named.is_file() else config

"""What stands beside a trained system's figure: published ones, and an n-gram on the same split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.figures import LYRICS
from bench.ngram import (
    NGram,
    NGramResult,
    choose_discount,
    end_of,
    heldout_loss,
    heldout_loss_of_sequences,
    mean,
)
from bench.runs import Run, settings
from lstm_jax.systems import read_system
from lstm_jax.systems.base import TrainConfig
from lstm_jax.systems.corpus import Corpus
from lstm_jax.systems.language import LanguageConfig, LanguageSystem
from lstm_jax.systems.poems import PoemsConfig, PoemsSystem
from lstm_jax.systems.published import PublishedBatches
from lstm_jax.text import NOT_COUNTED, PaddedLanes, heldout_split

_ORDERS = {"char": 6, "word": 2}
_POEMS_ORDER = 3

NOT_AT_HAND = "data not at hand"
"""In place of an n-gram's figure: the data is gone, or another one is in its place."""


class Published(NamedTuple):
    """Figures that others published.

    Attributes:
        preset: of the system.
        where: the settings they hold for.
        text: the figures.
    """

    preset: str
    where: Mapping[str, object]
    text: str


def _lyrics(cell: str, layers: int, text: str, *, bidirectional: bool = False) -> Published:
    network = {"cell": cell, "layers": layers, "hidden_size": 256, "bidirectional": bidirectional}
    return Published(LYRICS, {f"model.{name}": value for name, value in network.items()}, text)


PUBLISHED = (
    # A notebook on the same novel, whose split is not known to be the end's or the lanes'.
    Published(
        "anna",
        {
            "heldout_share": 0.1,
            "model.cell": "lstm",
            "model.layers": 2,
            "model.hidden_size": 512,
            "model.bidirectional": False,
        },
        "1.488 at step 990, 1.292 at epoch 20 (split not stated)",
    ),
    # A TensorFlow recipe; its text is the full works, all of them trained on.
    Published(
        "shakespeare",
        {
            "heldout_share": 0.0,
            "model.cell": "lstm",
            "model.layers": 1,
            "model.hidden_size": 128,
            "model.bidirectional": False,
        },
        "about 5.99 (full works)",
    ),
    # The first two figures: PyTorch on the published set-up. The last: a book. Both: other lyrics.
    _lyrics("lstm", 1, "1.041 at epoch 40, 1.016 at 160 (other text); a book's 1.02 at 40"),
    # PyTorch on the published set-up, with other lyrics; so are the next two.
    _lyrics("gru", 1, "1.021 at epoch 40, 1.017 at 160 (other text)"),
    _lyrics("lstm", 2, "1.105 at epoch 40, 1.014 at 160 (other text)"),
    _lyrics("lstm", 1, "1.00 (other text)", bidirectional=True),
)
"""No figure is known for poems, nor for reviews of this kind and size."""


def published(config: TrainConfig) -> str | None:
    """The published figures that a run of these settings can be held against."""
    kept = settings(config)
    for each in PUBLISHED:
        if each.preset == config.preset and each.where.items() <= kept.items():
            return each.text
    return None


class NGrams:
    """N-grams on the data and split of runs, one for each that differs."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], NGramResult | str] = {}

    def figure(self, run: Run) -> NGramResult | str | None:
        """The held-out loss of an n-gram, or why there is none; None where there is none to have.

        A corpus that is named rather than a file is fetched where the cache lacks it.
        """
        config = run.config
        if not config.heldout_share or config.preset == LYRICS:
            return None
        if not isinstance(config, LanguageConfig | PoemsConfig):
            return None
        key = (run.sha256, *_split(config))
        if key not in self._found or isinstance(self._found[key], str):
            self._found[key] = _fit(config, run)
        return self._found[key]


def _split(config: LanguageConfig | PoemsConfig) -> tuple[object, ...]:
    """The settings that the ids trained on and held out depend on."""
    shared = (config.heldout_share, config.heldout_from)
    if isinstance(config, PoemsConfig):
        seed = config.seed if config.heldout_from == "random" else None
        return (*shared, config.length, config.keep, config.drop_unfit, seed)
    text = (config.tokens, config.min_count, config.cleaning, config.characters, config.line_ends)
    if config.heldout_from == "lanes":
        return (*shared, *text, config.batch_size, config.sequence_length)
    return (*shared, *text)


def _fit(config: LanguageConfig | PoemsConfig, run: Run) -> NGramResult | str:
    try:
        system: Any = read_system(_with_corpora(config), kept=run.path)
    except (ValueError, OSError):
        return NOT_AT_HAND
    if system.sha256 != run.sha256:
        return NOT_AT_HAND
    if isinstance(system, PoemsSystem):
        sizes = {"order": _POEMS_ORDER, "vocabulary_size": len(system.vocabulary)}
        return heldout_loss_of_sequences(system.training, system.held_out, **sizes)
    assert isinstance(system, LanguageSystem)
    return _of_text(system.config, system.corpus)


def _with_corpora(config: LanguageConfig | PoemsConfig) -> LanguageConfig | PoemsConfig:
    """The settings with their data sought in the corpora's folder where it is named only."""
    folder = os.environ.get("LSTM_JAX_DATA")
    if not (folder and config.data) or Path(config.data).exists():
        return config
    named = Path(folder, config.data)
    return dataclasses.replace(config, data=str(named)) if named.is_file() else config


def _of_text(config: LanguageConfig, corpus: Corpus) -> NGramResult:
    order, size = _ORDERS[config.tokens], len(corpus.vocabulary)
    if config.heldout_from == "end":
        training, heldout = heldout_split(corpus.ids, config.heldout_share)
        return heldout_loss(training, heldout, order=order, vocabulary_size=size)
    assert corpus.heldout is not None and not isinstance(corpus.training, PublishedBatches)
    return _of_lanes(corpus.training.tokens, corpus.heldout, order, size)


def _of_lanes(
    training: np.ndarray[Any, Any], heldout: PaddedLanes, order: int, size: int
) -> NGramResult:
    """Each lane `[:, b]` is a sequence, whose held-out end follows what is trained on."""
    discount = choose_discount([np.concatenate(training.T)], order, size)
    model = NGram(list(training.T), vocabulary_size=size, discounts=(discount,) * order)
    contexts = [end_of(lane, order) for lane in training.T]
    lanes = [
        np.concatenate((context, targets[targets != NOT_COUNTED]))
        for context, targets in zip(contexts, heldout.targets.T, strict=True)
    ]
    return NGramResult(mean(model.losses(lanes, len(contexts[0]))), discount, order)

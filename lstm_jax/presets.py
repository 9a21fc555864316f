"""The systems that `train.py` runs by name, as frozen dataclasses."""

from __future__ import annotations

import dataclasses

from lstm_jax.classifier import ClassifierConfig
from lstm_jax.models import LanguageModelConfig
from lstm_jax.training.config import (
    AnyConfig,
    LanguageConfig,
    OptimizerConfig,
    PoemsConfig,
    ReviewsConfig,
    SampleConfig,
)

DOCS = LanguageConfig(
    preset="docs",
    data="python-docs",
    heldout_share=0.05,
    batch_size=16,
    sequence_length=64,
    zero_carry_rate=0.01,
    epochs=10,
    evaluate_every=1000,
    checkpoint_every=1000,
    sample_every=1000,
    sample_prompts=("The ",),
    sample=SampleConfig(length=200, temperature=0.7),
    model=LanguageModelConfig(cell="lstm", layers=1, hidden_size=256, initialisation="keras"),
    optimizer=OptimizerConfig(
        learning_rate=8e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
    ),
)
"""The default: Python's own documentation, a character at a time, in about two minutes."""

ANNA = LanguageConfig(
    preset="anna",
    data="anna",
    heldout_share=0.0,
    batch_size=100,
    sequence_length=100,
    zero_carry_rate=0.01,
    epochs=5,
    evaluate_every=100,
    checkpoint_every=100,
    keep_checkpoints=100,
    sample_every=200,
    sample_prompts=("Far",),
    sample=SampleConfig(length=200, top_n=5),
    model=LanguageModelConfig(
        cell="lstm",
        layers=2,
        hidden_size=512,
        dropout=0.5,
        dropout_place="outputs",
        initialisation="tf1",
        output_stddev=0.1,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=5.0),
)
"""A novel, a character at a time; after a published TensorFlow notebook."""

SHAKESPEARE = LanguageConfig(
    preset="shakespeare",
    data="tinyshakespeare",
    tokens="word",
    min_count=6,
    output_bias="frequencies",
    heldout_share=0.1,
    batch_size=20,
    sequence_length=50,
    zero_carry_rate=0.01,
    epochs=10,
    evaluate_every=50,
    checkpoint_every=500,
    sample_every=50,
    sample_prompts=("thou art more", "to be or not to", "wherefore art thou"),
    sample=SampleConfig(length=10),
    model=LanguageModelConfig(
        cell="lstm",
        layers=1,
        hidden_size=128,
        embedding_size=128,
        dropout=0.5,
        dropout_place="outputs",
        initialisation="tf1",
        embedding_stddev=1.0,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=4.5),
)
"""Plays, a word at a time; after a published TensorFlow recipe.

The recipe's 100 sequences are for five times as much text: 20 keep the steps of an epoch.
"""

POEMS = PoemsConfig(
    preset="poems",
    output_bias="frequencies",
    batch_size=32,
    epochs=10,
    intervals="epochs",
    log_every=1,
    evaluate_every=1,
    checkpoint_every=1,
    sample_every=1,
    model=LanguageModelConfig(
        cell="lstm",
        layers=1,
        hidden_size=256,
        embedding_size=256,
        tied=True,
        dropout=0.4,
        dropout_place="inputs",
        output_dropout=0.5,
        initialisation="keras",
    ),
    optimizer=OptimizerConfig(
        learning_rate=3e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0
    ),
)
"""Short poems, a character at a time, that fill acrostics; the task of a published Keras system.

Its own network (`--as-published`) learns little more than an n-gram knows, and soon overfits.
"""

REVIEWS = ReviewsConfig(
    preset="reviews",
    data="imdb",
    batch_size=128,
    epochs=12,
    intervals="epochs",
    log_every=1,
    evaluate_every=1,
    checkpoint_every=1,
    patience=5,
    model=ClassifierConfig(
        cell="lstm",
        layers=2,
        hidden_size=64,
        dropout=0.2,
        dropout_place="inputs",
        initialisation="keras",
        embedding_size=50,
        learn_missing=True,
        word_dropout=0.4,
        dense_size=32,
        dense_dropout=0.5,
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup_steps=100, clip_norm=None
    ),
)
"""Is a film review favourable? After a published Keras system on frozen word vectors."""

LYRICS = LanguageConfig(
    preset="lyrics",
    heldout_share=0.0,
    characters=10_000,
    line_ends="space",
    batch_size=32,
    sequence_length=35,
    epochs=160,
    intervals="epochs",
    log_every=1,
    evaluate_every=0,
    checkpoint_every=40,
    sample_every=40,
    sample_prompts=("分开", "不分开"),
    sample=SampleConfig(length=50, temperature=0.0),
    model=LanguageModelConfig(cell="lstm", layers=1, hidden_size=256, initialisation="pytorch"),
    optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=1e-2),
)
"""Ten thousand characters by heart, with any cell; after a published PyTorch text."""

PRESETS: tuple[AnyConfig, ...] = (DOCS, ANNA, SHAKESPEARE, POEMS, REVIEWS, LYRICS)

_PUBLISHED: dict[str, AnyConfig] = {
    "anna": dataclasses.replace(ANNA, zero_carry_rate=0.0),
    "shakespeare": dataclasses.replace(
        SHAKESPEARE,
        cleaning="published",
        layout="published",
        heldout_share=0.0,
        zero_carry_rate=0.0,
        batch_size=100,
        output_bias="drawn",
        sample=SampleConfig(length=10, temperature=0.0, unknown="ends"),
        model=dataclasses.replace(
            SHAKESPEARE.model, dropout=0.0, output_stddev=1.0, output_truncated=False
        ),
    ),
    "poems": dataclasses.replace(
        POEMS,
        keep="last",
        drop_unfit=False,
        heldout_from="last",
        widths=1,
        output_bias="drawn",
        batch_size=128,
        epochs=10,
        model=LanguageModelConfig(
            cell="lstm", layers=1, hidden_size=64, embedding_size=128, initialisation="keras"
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=None),
    ),
    "reviews": dataclasses.replace(
        REVIEWS,
        patience=0,
        epochs=20,
        model=dataclasses.replace(
            REVIEWS.model, dropout=0.5, word_dropout=0.0, learn_missing=False
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=None),
    ),
    "lyrics": dataclasses.replace(LYRICS, carry_backward=True),
}


def preset_named(name: str, *, as_published: bool = False) -> AnyConfig:
    """The preset of that name, or what it follows with every flaw.

    Raises:
        ValueError: there is none.
    """
    for preset in PRESETS:
        if preset.preset != name:
            continue
        if not as_published:
            return preset
        if name not in _PUBLISHED:
            raise ValueError(f"preset {name!r} follows no published system; leave --as-published")
        return _PUBLISHED[name]
    names = ", ".join(preset.preset for preset in PRESETS)
    raise ValueError(f"there is no preset {name!r}; choose one of {names}")

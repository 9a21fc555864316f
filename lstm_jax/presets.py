"""The systems that `train.py` runs by name, as frozen dataclasses."""

from __future__ import annotations

from lstm_jax.models import LanguageModelConfig
from lstm_jax.training.config import OptimizerConfig, TrainConfig
from lstm_jax.training.corpus import PYTHON_DOCS

DOCS = TrainConfig(
    preset="docs",
    data=PYTHON_DOCS,
    heldout_share=0.05,
    batch_size=16,
    sequence_length=64,
    epochs=10,
    evaluate_every=1000,
    checkpoint_every=1000,
    sample_every=1000,
    sample_prompts=("The ",),
    sample_length=200,
    sample_temperature=0.7,
    model=LanguageModelConfig(cell="lstm", layers=1, hidden_size=256, initialisation="keras"),
    optimizer=OptimizerConfig(
        learning_rate=4e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
    ),
)
"""The default: Python's own documentation, a character at a time, in about two minutes."""

ANNA = TrainConfig(
    preset="anna",
    heldout_share=0.0,
    batch_size=100,
    sequence_length=100,
    epochs=5,
    evaluate_every=100,
    checkpoint_every=100,
    keep_checkpoints=100,
    sample_every=200,
    sample_prompts=("Far",),
    sample_length=200,
    sample_top_n=5,
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
"""A novel, a character at a time; the settings of a published TensorFlow notebook."""

PRESETS = (DOCS, ANNA)


def preset_named(name: str) -> TrainConfig:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    for preset in PRESETS:
        if preset.preset == name:
            return preset
    names = ", ".join(preset.preset for preset in PRESETS)
    raise ValueError(f"there is no preset {name!r}; choose one of {names}")

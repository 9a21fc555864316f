"""Configs survive JSON, and refuse what makes no sense."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from lstm_jax.models import LanguageModelConfig
from lstm_jax.systems import from_dict, preset_named, presets, to_dict
from lstm_jax.systems.base import OptimizerConfig, SampleConfig, TrainConfig
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.reviews import ReviewsConfig

each_preset = pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.preset)


@each_preset
def test_a_preset_survives_json(preset: TrainConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(preset)))) == preset


UNSET = ("steps", "decay_steps", "characters", "embedding_size", "top_n")
"""Sizes that are None by default."""


@each_preset
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**30])
def test_every_number_is_finite_and_fits_a_machine(preset: TrainConfig, number: float) -> None:
    def refused(values: dict[str, Any]) -> None:
        for name, value in list(values.items()):
            if isinstance(value, dict):
                refused(value)
            elif number != 10**30 or type(value) is int or name in UNSET:
                values[name] = number
                with pytest.raises(ValueError, match=name):
                    from_dict(whole)
                values[name] = value

    refused(whole := to_dict(preset))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"model": {"size": 1}}, "model.size"),
        ({"model": 3}, "model"),
        ({"system": "weather"}, "weather"),
    ],
)
def test_fields_of_a_newer_version_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_dict({"system": "language"} | values)


NONSENSE: list[tuple[Any, dict[str, Any]]] = [
    (LanguageConfig(), {"batch_size": 0, "sequence_length": -1, "epochs": 0, "devices": 0,
                        "log_every": 0, "checkpoint_every": -1, "keep_checkpoints": 0,
                        "heldout_share": 1.0, "patience": -1, "characters": 0, "seed": 2**32,
                        "steps": 0, "sample_prompts": ("The ", "")}),
    (OptimizerConfig(), {"learning_rate": 0.0, "clip_norm": -1.0, "beta1": 1.0, "decay_rate": 1.5,
                         "final_share": 2.0, "warmup_steps": -1, "schedule": "sudden"}),
    (SampleConfig(), {"temperature": -0.5, "length": 0}),
    (PoemsConfig(), {"length": 1, "sample_templates": ("",)}),
    (ReviewsConfig(), {"vocabulary_size": 4, "length": 0}),
    (LanguageModelConfig(), {"hidden_size": 0, "dropout": 1.0, "layers": -2, "cell": "elman"}),
]  # fmt: skip
IN_VAIN: list[tuple[Any, dict[str, Any], str]] = [
    (LanguageConfig(), {"seed": -1}, "seed"),
    (OptimizerConfig(), {"schedule": "step"}, "'step'.*decay_steps"),
    (LanguageConfig(), {"patience": 2, "heldout_share": 0.0}, "patience"),
    (LanguageConfig(), {"layout": "published", "heldout_from": "lanes"}, "no lanes"),
    (LanguageConfig(), {"cleaning": "published"}, "tokens"),
    (PoemsConfig(), {"model": LanguageModelConfig(bidirectional=True)}, "bidirectional"),
]
"""What does not go together, or is named otherwise."""


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [(config, {name: value}, name) for config, bad in NONSENSE for name, value in bad.items()]
    + IN_VAIN,
)
def test_nonsense_is_refused_by_name(config: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(config, **changes)


FLAWS = {
    "anna": {"zero_carry_rate"},
    "lyrics": {"carry_backward"},
    "shakespeare": {"zero_carry_rate", "cleaning", "layout", "heldout_share", "batch_size",
                    "output_bias", "sample", "model"},
    "poems": {"keep", "drop_unfit", "heldout_from", "widths", "output_bias", "batch_size",
              "optimizer", "model"},
    "reviews": {"patience", "epochs", "model", "optimizer"},
}  # fmt: skip


def test_what_is_published_differs_from_a_preset_in_its_flaws_alone() -> None:
    for name, flaws in FLAWS.items():
        ours, published = (to_dict(preset_named(name, as_published=p)) for p in (False, True))
        assert {key for key in ours if ours[key] != published[key]} == flaws
    with pytest.raises(ValueError, match="no published system"):
        preset_named("docs", as_published=True)

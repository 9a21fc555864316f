"""Configs survive JSON, and refuse what makes no sense."""

from __future__ import annotations

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


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.preset)
def test_a_preset_survives_json(preset: TrainConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(preset)))) == preset


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.preset)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_field_holds_what_json_has_no_number_for(preset: TrainConfig, number: float) -> None:
    def refused(values: dict[str, Any]) -> None:
        for name, value in list(values.items()):
            if isinstance(value, dict):
                refused(value)
                continue
            values[name] = number
            with pytest.raises(ValueError):
                from_dict(whole)
            values[name] = value

    refused(whole := to_dict(preset))


def test_fields_that_an_older_version_lacks_take_their_defaults() -> None:
    values = to_dict(LanguageConfig(batch_size=7))
    del values["epochs"], values["optimizer"]["beta1"], values["model"]["unroll"]
    assert from_dict(values) == LanguageConfig(batch_size=7)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("sequence_length", -1),
        ("epochs", 0),
        ("steps", 0),
        ("devices", 0),
        ("log_every", 0),
        ("checkpoint_every", -1),
        ("keep_checkpoints", 0),
        ("heldout_share", 1.0),
        ("heldout_share", math.nan),
        ("patience", -1),
        ("characters", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("sample_prompts", ("The ", "")),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(LanguageConfig(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("clip_norm", -1.0),
        ("beta1", 1.0),
        ("decay_rate", 1.5),
        ("final_share", 2.0),
        ("warmup_steps", -1),
        ("schedule", "step"),  # without an interval
        ("schedule", "sudden"),
    ],
)
def test_a_nonsense_optimizer_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=value if isinstance(value, str) else name):
        OptimizerConfig(**{name: value})


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (SampleConfig(), {"temperature": -0.5}, "temperature"),
        (SampleConfig(), {"temperature": math.inf}, "temperature"),
        (SampleConfig(), {"length": 0}, "length"),
        (LanguageConfig(), {"patience": 2, "heldout_share": 0.0}, "patience"),
        (LanguageConfig(), {"layout": "published", "heldout_from": "lanes"}, "no lanes"),
        (LanguageConfig(), {"cleaning": "published"}, "tokens"),
        (PoemsConfig(), {"length": 1}, "length"),
        (PoemsConfig(), {"sample_templates": ("",)}, "sample_templates"),
        (PoemsConfig(), {"model": LanguageModelConfig(bidirectional=True)}, "bidirectional"),
        (ReviewsConfig(), {"vocabulary_size": 4}, "vocabulary_size"),
        (ReviewsConfig(), {"length": 0}, "length"),
    ],
)
def test_nonsense_of_a_system_is_refused_by_name(
    config: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        replace(config, **changes)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_size", 0), ("dropout", 1.0), ("layers", -2), ("cell", "elman")]
)
def test_a_nonsense_model_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        LanguageModelConfig(**{name: value})


def test_the_anna_preset_is_the_published_one() -> None:
    anna = preset_named("anna", as_published=True)
    assert isinstance(anna, LanguageConfig)
    assert (anna.batch_size, anna.sequence_length, anna.epochs) == (100, 100, 5)
    assert (anna.model.layers, anna.model.hidden_size, anna.model.embedding_size) == (2, 512, None)
    assert (anna.model.dropout, anna.model.dropout_place) == (0.5, "outputs")
    assert (anna.model.initialisation, anna.model.output_stddev) == ("tf1", 0.1)
    assert (anna.optimizer.learning_rate, anna.optimizer.clip_norm) == (1e-3, 5)
    assert anna.optimizer.schedule == "constant"
    assert (anna.checkpoint_every, anna.keep_checkpoints, anna.heldout_share) == (100, 100, 0)


def test_what_is_published_differs_from_a_preset_in_its_flaws_alone() -> None:
    def changed(name: str) -> set[str]:
        ours, published = (to_dict(preset_named(name, as_published=p)) for p in (False, True))
        return {key for key in ours if ours[key] != published[key]}

    assert changed("anna") == {"zero_carry_rate"}
    assert changed("shakespeare") == {
        "zero_carry_rate",
        "cleaning",
        "layout",
        "heldout_share",
        "batch_size",
        "output_bias",
        "sample",
        "model",
    }
    assert changed("poems") == {
        "keep",
        "drop_unfit",
        "heldout_from",
        "widths",
        "output_bias",
        "batch_size",
        "optimizer",
        "model",
    }
    assert changed("reviews") == {"patience", "epochs", "model", "optimizer"}
    assert changed("lyrics") == {"carry_backward"}
    with pytest.raises(ValueError, match="no published system"):
        preset_named("docs", as_published=True)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="docs, anna, shakespeare, lyrics, poems, reviews"):
        preset_named("annna")

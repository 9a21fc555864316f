"""The systems that `train.py` runs by name, each in its own file.

A system is a subclass of `System`: its settings, presets, data, objective and samples. Adding it to
`SYSTEMS` makes it known to `train.py`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lstm_jax.settings import from_json
from lstm_jax.systems.base import System, TrainConfig
from lstm_jax.systems.language import LanguageSystem
from lstm_jax.systems.poems import PoemsSystem
from lstm_jax.systems.reviews import ReviewsSystem
from lstm_jax.text import Vocabulary

SYSTEMS: tuple[type[System], ...] = (LanguageSystem, PoemsSystem, ReviewsSystem)


def presets() -> tuple[TrainConfig, ...]:
    """All named settings; the first is the default."""
    return tuple(preset for each in SYSTEMS for preset in each.presets)


def system_of(config: TrainConfig) -> type[System]:
    """The system of these settings."""
    (system,) = (each for each in SYSTEMS if type(config) is each.Config)
    return system


def preset_named(name: str, *, as_published: bool = False) -> TrainConfig:
    """The preset of this name, or the exact system that it follows; else raises ValueError."""
    named = {preset.preset: preset for preset in presets()}
    if name not in named:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(named)}")
    if not as_published:
        return named[name]
    published = system_of(named[name]).published
    if name not in published:
        raise ValueError(f"preset {name!r} follows no published system; leave --as-published")
    return published[name]


def read_system(config: TrainConfig, kept: Path | None = None) -> System:
    """Read a run's data; raises ValueError, with the cure, if it is unusable.

    `kept` is the folder of an existing run, with the files it keeps. A new run initialised from
    another's weights takes its vocabulary.
    """
    vocabulary = None
    if config.init_from is not None:
        vocabulary = Vocabulary.load((kept or Path(config.init_from)) / "vocab.json")
    return system_of(config).read(config, kept, vocabulary)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Convert settings to JSON values."""
    return {"system": system_of(config).name, **dataclasses.asdict(config)}


def from_dict(values: Any) -> TrainConfig:
    """Rebuild settings from `to_dict`'s values; see `from_json` for defaults and errors."""
    known = {system.name: system for system in SYSTEMS}
    system = values.get("system") if isinstance(values, dict) else None
    if not isinstance(system, str) or system not in known:
        raise ValueError(
            f"its system is {system!r}; expected one of {', '.join(known)}; import the module that "
            "adds it to lstm_jax.systems.SYSTEMS first, or restore it"
        )
    rest = {name: value for name, value in values.items() if name != "system"}
    return from_json(known[system].Config, rest)

"""Reading of `train.py`'s run folders: settings, metrics, and progress."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstm_jax.settings import flat
from lstm_jax.systems import presets, system_of, to_dict
from lstm_jax.systems.base import TrainConfig
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder, read_description

_BOOKKEEPING = {"system", "preset", "data", "seed", "devices", "intervals", "log_every",
                "evaluate_every", "checkpoint_every", "sample_every", "keep_checkpoints",
                "sample_prompts", "sample_templates", "corpus_on_device_mb",
                "model.frozen_embedding"}  # fmt: skip
"""As well as the group `sample`; `vectors` shows whether an embedding is frozen."""


@dataclass(frozen=True)
class Run:
    """A run folder: settings, hash of the data, environment, and rows of metrics."""

    path: Path
    config: TrainConfig
    sha256: str
    device: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def epoch(self) -> float:
        return number(self.rows[-1], "epoch")

    @property
    def ran_out_of_patience(self) -> bool:
        """Whether it ended because the held-out loss stopped falling."""
        best, since = math.inf, 0
        for row in self.rows:
            if "heldout_loss" in row:
                loss = number(row, "heldout_loss")
                best, since = (loss, 0) if loss < best else (best, since + 1)
        return 0 < self.config.patience <= since

    @property
    def is_finished(self) -> bool:
        return not self.progress.startswith("unfinished")

    @property
    def progress(self) -> str:
        """Progress of an unfinished run, else an empty string."""
        config, step = self.config, self.rows[-1]["step"]
        if self.ran_out_of_patience:
            return f"ended by patience at epoch {self.epoch:.4g}"
        if config.steps is not None:
            return "" if step >= config.steps else f"unfinished, at step {step} of {config.steps}"
        if self.epoch >= config.epochs:
            return ""
        return f"unfinished, at epoch {self.epoch:.4g} of {config.epochs}"


def read_run(path: Path) -> Run:
    """Read a run folder; raises ValueError if it is not one, is damaged, or has no metrics."""
    folder = RunFolder(path)
    config, sha256, _ = read_description(folder)
    rows = read_rows(folder.metrics)
    if not rows:
        raise ValueError(
            f"{path} has no metrics ({folder.metrics.name} is missing, empty, or damaged in its "
            "first line); let it train to its first row, or leave it out"
        )
    written_by = _described(folder).get("written_by", {})
    device, cores = written_by.get("device"), written_by.get("processor_cores")
    device = f"{device}, {cores} cores" if device and cores else device or "device not recorded"
    return Run(path, config, sha256, device, tuple(rows))


def keep_run(run: Run, path: Path) -> None:
    """Write a run's settings and metrics to another folder, without its files' private paths."""
    described, folder = _described(RunFolder(run.path)), RunFolder(path)
    for name in ("files", "crc32"):  # of files not kept, and of what changes here
        described.pop(name, None)
    for name in ("data", "vectors", "init_from"):
        if described["config"].get(name) is not None:
            described["config"][name] = Path(described["config"][name]).name
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    folder.config.write_text(text, encoding="utf-8")
    with folder.metrics.open("w", encoding="utf-8") as file:
        for row in run.rows:  # in float32's seven digits
            short = {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
            file.write(json.dumps(short) + "\n")


def _described(folder: RunFolder) -> dict[str, Any]:
    """Contents of `config.json`, validated by `read_description`."""
    return json.loads(folder.config.read_text(encoding="utf-8"))


def number(row: Mapping[str, Any], name: str) -> float:
    """A number from a row of metrics; NaN if it is missing or not finite."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def settings(config: TrainConfig) -> dict[str, Any]:
    """Settings that determine a run's numbers, without seed and data, by flat names."""
    found = flat(to_dict(config))
    if found.get("vectors") is not None:
        found["vectors"] = Path(found["vectors"]).name
    return {
        name: value
        for name, value in found.items()
        if name not in _BOOKKEEPING and not name.startswith("sample.")
    }


def differences(config: TrainConfig) -> tuple[str, ...]:
    """Differences from the run's preset, as flags of `train.py`."""
    named = {preset.preset: preset for preset in presets()}
    found = _flags(config, named.get(config.preset) or type(config)())
    published = system_of(config).published.get(config.preset)
    if published is None:
        return found
    return min(found, ("--as-published", *_flags(config, published)), key=len)


def _flags(config: TrainConfig, base: TrainConfig) -> tuple[str, ...]:
    kept, flags = settings(base), []
    for name, value in settings(config).items():
        group, dot, last = name.replace("_", "-").rpartition(".")
        if value == kept.get(name):
            continue
        if isinstance(value, bool):
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{last}")
        else:
            flags.append(f"--{group}{dot}{last} {value}")
    return tuple(flags)

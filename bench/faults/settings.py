"""Resuming with other settings: harmless ones are recorded, harmful ones refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.faults.lines import Line
from bench.faults.tiny import TEXT, Place
from lstm_jax.cli.train import train_command
from lstm_jax.training.run import RunFolder

HARMLESS = {
    "optimizer.learning_rate": 0.002,
    "optimizer.clip_norm": 1.0,
    "model.dropout": 0.1,
    "log_every": 4,
    "evaluate_every": 9,
    "checkpoint_every": 6,
    "keep_checkpoints": 4,
    "sample.temperature": 0.5,
}
HARMFUL = {
    "model.hidden_size": 13,
    "model.layers": 2,
    "model.cell": "gru",
    "model.embedding_size": 4,
    "tokens": "word",
    "characters": 999,
    "batch_size": 5,
    "sequence_length": 17,
    "heldout_share": 0.2,
    "seed": 1,
}


def harmless_settings(place: Place, whole: Path) -> Line:
    """Resumes a copy of a finished run with other settings, all at once."""
    harmless = place.path / "harmless"
    shutil.copytree(whole, harmless)
    flags = [part for name, value in HARMLESS.items() for part in _flag(name, value)]
    process = place.begun("harmless", *flags, "--steps", str(place.steps + 6))
    failures = [] if process.wait() == 0 else [f"refused: {process.output}"]
    recorded = _flat(json.loads(RunFolder(harmless).config.read_text())["config"])
    failures += [
        f"{name} was not recorded" for name, value in HARMLESS.items() if recorded[name] != value
    ]
    return Line(
        "resumed with settings that harm nothing",
        len(HARMLESS) + 1,
        tuple(failures),
        f"trained on and recorded in config.json: {', '.join(HARMLESS)}, steps",
    )


def harmful_settings(place: Place, whole: Path) -> Line:
    """Resumes a finished run with one setting changed, and then another, and with other data."""
    other = place.path / "other.txt"
    other.write_text(TEXT.replace("milk", "mild"), encoding="utf-8")
    refusals = {name: _refusal(whole, *_flag(name, value)) for name, value in HARMFUL.items()}
    failures = [f"{name}: {said}" for name, said in refusals.items() if f"{name} is" not in said]
    said = _refusal(whole, "--data", str(other))
    failures += [] if "SHA-256 differs" in said else [f"other data: {said}"]
    return Line(
        "resumed with settings, or data, that do not fit",
        len(HARMFUL) + 1,
        tuple(failures),
        f"refused by name: {', '.join(HARMFUL)}; other data by its SHA-256",
    )


def _refusal(run: Path, *flags: str) -> str:
    """What is said of a resume that ought to be refused."""
    try:
        train_command(["--run-dir", str(run), "--resume", *flags])
    except ValueError as refusal:
        return str(refusal)
    return "it was accepted"


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag, str(value)]


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat

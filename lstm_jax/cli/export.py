"""The command `export`: a run's model into an artefact that needs JAX alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lstm_jax.classifier import Classifier
from lstm_jax.cli.arguments import parse
from lstm_jax.interop.export import (
    Platform,
    export_classifier,
    export_sampler,
    export_step,
    save_exported,
    signature,
)
from lstm_jax.interop.files import require_target
from lstm_jax.models import LanguageModel

if TYPE_CHECKING:
    from jax.export import Exported

    from lstm_jax.text import Vocabulary


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's model, weights and all, as a program that only needs jax and flatbuffers.

    Load it with jax.export.deserialize(open(TARGET, "rb").read()) and run it with .call(...).

    Attributes:
        run_dir: a folder that train.py made.
        target: the file to write.
        what: "step": (carry ..., token) to (carry ..., logits); "sampler": (prompt, key data,
            temperature, top n) to tokens; "classifier": (tokens, mask) to probability. By default
            the step.
        places: how many tokens a sampler writes.
        platforms: where it is to run; by default where this process does.
        step: which checkpoint: a step, the newest good one, or the best on held-out data. By
            default a classifier's best, and the newest of others.
        overwrite: replace the target if it is there.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]
    what: Literal["step", "sampler", "classifier"] = "step"
    places: int = 256
    platforms: tuple[Platform, ...] = ()
    step: int | Literal["newest", "best"] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_target(self.target, overwrite=self.overwrite)
        if self.places < 1:
            raise ValueError(f"places is {self.places}; it must be at least 1")
        if isinstance(self.step, int) and self.step < 0:
            raise ValueError(f"step is {self.step}; it must be 0 or above")


def export_command(arguments: Sequence[str], prog: str = "export") -> int:
    """Runs `export`; raises ValueError for whatever the user can mend."""
    command = parse(ExportCommand, None, arguments, prog)
    exported = _exported(command)
    size = save_exported(command.target, exported)
    platforms = ", ".join(exported.platforms)
    print(f"wrote {size:,} bytes for {platforms}: {command.target}")
    print(f"{command.what}: {signature(exported)}")
    return 0


def _exported(command: ExportCommand) -> Exported:
    from lstm_jax.training.run import load

    platforms = command.platforms or None
    kind = Classifier if command.what == "classifier" else LanguageModel
    model, params, vocabulary, _ = load(command.run_dir, step=command.step, kind=kind)
    if command.what == "classifier":
        return export_classifier(model, params, platforms=platforms)
    if command.what == "step":
        return export_step(model, params, platforms=platforms)
    forbidden = _never_written(vocabulary)
    return export_sampler(model, params, command.places, forbidden=forbidden, platforms=platforms)


def _never_written(vocabulary: Vocabulary) -> list[int]:
    """Padding and the unknown token, as `sample.py` has it."""
    return [id for id in (vocabulary.padding, vocabulary.unknown) if id is not None]

"""The command `classify`: labels texts with a trained classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lstm_jax.cli.arguments import importing, parse


@dataclass(frozen=True)
class ClassifyCommand:
    """Label texts, one a line, with a trained classifier.

    For each line of the file, or of standard input, prints the label, the probability that the
    text is positive, and the text, with tabs between them: a row a line, an empty line's too. LF
    and CRLF end a line, and no other character does.

    Attributes:
        run_dir: a folder that train.py made of the reviews preset.
        file: UTF-8 text, one review a line; standard input if there is none.
        batch_size: texts that are read together.
        step: which checkpoint: a step, the newest good one, or the best on held-out data.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    file: Annotated[Path | None, tyro.conf.Positional] = None
    batch_size: int = 128
    step: int | Literal["newest", "best"] = "best"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


def classify_command(arguments: Sequence[str], prog: str = "classify") -> int:
    """Runs the command; raises ValueError for whatever the user can mend."""
    command = parse(ClassifyCommand, None, arguments, prog)
    with importing():
        from lstm_jax.classifier import Classifier
        from lstm_jax.systems.reviews import probabilities
        from lstm_jax.training.run import load

    model, params, vocabulary, config = load(command.run_dir, step=command.step, kind=Classifier)
    for texts in _batches(_lines(command.file), command.batch_size):
        found = probabilities(model, params, vocabulary, config, texts, command.batch_size)
        for probability, text in zip(found, texts, strict=True):
            label = "positive" if probability > 0.5 else "negative"
            print(f"{label}\t{probability:.4f}\t{text}")
        sys.stdout.flush()
    return 0


def _lines(file: Path | None) -> Iterator[str]:
    """The lines, empty ones too; those of standard input as they come."""
    from lstm_jax.text import read_lines
    from lstm_jax.text.decoding import decode

    if file is not None:
        lines = read_lines(file)
        yield from lines if lines[-1] else lines[:-1]
        return
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line = decode(raw, f"line {number} of standard input")
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield line.replace("\r\n", "\n").removesuffix("\n")


def _batches(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

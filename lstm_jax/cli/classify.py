"""The `classify` command: label texts with a trained classifier."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from lstm_jax.classifier import Classifier
from lstm_jax.cli.console import put
from lstm_jax.cli.options import ClassifyCommand
from lstm_jax.systems.reviews import probabilities
from lstm_jax.text import read_lines
from lstm_jax.text.decoding import decode
from lstm_jax.training.run import load


def run(command: ClassifyCommand) -> int:
    """Print a row per text; raises ValueError for user errors."""
    model, params, vocabulary, config = load(command.run_dir, step=command.step, kind=Classifier)
    lines, size = _lines(command.file), command.batch_size
    while texts := list(itertools.islice(lines, size)):
        found = probabilities(model, params, vocabulary, config, texts, size)
        for probability, text in zip(found, texts, strict=True):
            label = "positive" if probability > 0.5 else "negative"
            put(f"{label}\t{probability:.4f}\t{text}\n")
    return 0


def _lines(file: Path | None) -> Iterator[str]:
    """Yield lines, including empty ones; those of standard input as they arrive."""
    if file is not None:
        lines = read_lines(file)
        yield from lines if lines[-1] else lines[:-1]
        return
    for number, raw in enumerate(sys.stdin.buffer, 1):
        line = decode(raw, f"line {number} of standard input")
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield line.replace("\r\n", "\n").removesuffix("\n")

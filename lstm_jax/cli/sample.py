"""The command `sample.py`: writes text with a trained model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lstm_jax.cli.arguments import parse, run_command

if TYPE_CHECKING:
    from lstm_jax.text import Vocabulary
    from lstm_jax.training.writing import Template

PROG = "sample.py"


@dataclass(frozen=True)
class SampleCommand:
    """Write text with a trained model; standard output carries the text alone.

    Attributes:
        run_dir: a folder that train.py made.
        prompt: what the text begins with; by default the run's first sample prompt.
        template: in place of a prompt: a text whose characters stand where they are, and each *
            of which is filled (words, each * one of them, for a model of words).
        length: tokens to add to the prompt.
        top_n: take only the most likely n tokens; 0 for all.
        temperature: divides the logits; 0 takes the most likely token.
        greedy: always take the most likely token, as temperature 0 does.
        unknown: whether the unknown token of a model of words is never taken, or ends the text.
        feed_unknown: a character of the template that the vocabulary lacks is shown as it is, and
            the model reads it as unknown; else it is an error.
        line_length: begin a new line after so many tokens.
        seed: of the random draws.
        batch: texts to write, each with draws of its own.
        step: which checkpoint: a step, the newest good one, or the best on held-out data.
        force: let a bidirectional model write, which it cannot do well: it saw the future.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    prompt: str | None = None
    template: str | None = None
    length: int = 500
    top_n: int = 0
    temperature: float = 1.0
    greedy: bool = False
    unknown: Literal["never", "ends"] = "never"
    feed_unknown: bool = False
    line_length: int | None = None
    seed: int = 0
    batch: int = 1
    step: int | Literal["newest", "best"] = "newest"
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "batch", "line_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.top_n < 0:
            raise ValueError(f"top_n is {self.top_n}; it must be 0 (all tokens) or above")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")
        if isinstance(self.step, int) and self.step < 0:
            raise ValueError(f"step is {self.step}; it must be 0 or above")
        if self.prompt is not None and not self.prompt:
            raise ValueError("the prompt is empty; give at least one character")
        if self.prompt is not None and self.template is not None:
            raise ValueError("both a prompt and a template are given; a template has its own start")


def main() -> int:
    """The entry point."""
    return run_command(PROG, sample_command)


def sample_command(arguments: Sequence[str]) -> int:
    """Runs the command; raises ValueError for whatever the user can mend."""
    command = parse(SampleCommand, None, arguments, PROG)
    import jax

    from lstm_jax.training import writing
    from lstm_jax.training.config import SampleConfig
    from lstm_jax.training.run import load

    model, params, vocabulary = load(command.run_dir, step=command.step)
    if model.config.bidirectional and not command.force:
        raise ValueError(
            f"{command.run_dir} holds a bidirectional model: it learnt with the future in view, so "
            "it cannot write what comes next; train one without --model.bidirectional, or see "
            "what comes of it with --force"
        )
    sample = SampleConfig(
        length=command.length,
        top_n=command.top_n,
        temperature=0.0 if command.greedy else command.temperature,
        unknown=command.unknown,
    )
    template = _template(command, vocabulary)
    began = time.perf_counter()
    texts = writing.write(
        model,
        params,
        vocabulary,
        template,
        sample,
        key=jax.random.key(command.seed),
        texts=command.batch,
        allow_bidirectional=command.force,
    )
    seconds = time.perf_counter() - began
    for tokens in texts:
        sys.stdout.write(writing.joined(vocabulary, tokens, command.line_length) + "\n")
    rate = template.shown.count(None) * command.batch / seconds
    print(f"{rate:,.0f} tokens/s, compilation included", file=sys.stderr)
    return 0


def _template(command: SampleCommand, vocabulary: Vocabulary) -> Template:
    from lstm_jax.training import writing
    from lstm_jax.training.config import PoemsConfig, ReviewsConfig
    from lstm_jax.training.run import RunFolder, read_description

    text, prompt = command.template, command.prompt
    config = read_description(RunFolder(command.run_dir)).config
    if isinstance(config, PoemsConfig) and prompt is None:
        text = text or config.sample_templates[0]
    if text is not None:
        return writing.blanks_template(vocabulary, text, feed_unknown=command.feed_unknown)
    if prompt is None and not isinstance(config, PoemsConfig | ReviewsConfig):
        prompt = config.sample_prompts[0]
    return writing.prompt_template(vocabulary, prompt or "", command.length)


if __name__ == "__main__":
    sys.exit(main())

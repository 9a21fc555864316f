"""The command `sample.py`: writes text with a trained model, or judges given texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lstm_jax.cli.arguments import importing, parse, run_command

PROG = "sample.py"

HELP = """\
usage: {prog} RUN_DIR [--FLAG VALUE] ...

Writes text with a model that train.py made, to standard output.

common flags:
  --prompt TEXT      what the text begins with; by default one of the run's own
  --template TEXT    in place of a prompt: a text whose every * is to be filled
  --prompts PATH     a file of prompts, one a line
  --length N         tokens to add to a prompt, at most; by default 500
  --temperature X    below 1 more likely tokens, above 1 more surprising ones
  --top-n N          take only the N most likely tokens
  --stop TEXT ...    texts that end what is written
  --batch N          texts to write of each prompt
  --seed N           random seed
  --stream           show the text as it is made

{prog} --help-all prints all flags: filters, beams, scores, JSON lines."""

_WAYS = ("stream", "best_of", "beams", "score")
_MOST = {
    "length": 10_000_000,
    "batch": 1_000_000,
    "best_of": 2**16,
    "beams": 2**16,
    "side_by_side": 2**16,
    "temperature": 1e30,
    "repetition_penalty": 1e30,
    "length_penalty": 1e6,
}
_MOST_AT_ONCE = 2**28


@dataclass(frozen=True)
class SampleCommand:
    """Write text with a trained model; standard output carries the texts alone.

    Attributes:
        run_dir: a folder that train.py made.
        prompt: what the text begins with; by default the run's first sample prompt.
        template: in place of a prompt: a text whose characters stand where they are, and each *
            of which is filled (words, each * one of them, for a model of words).
        prompts: a UTF-8 file of prompts, one a line.
        templates: a UTF-8 file of templates, one a line.
        score: a UTF-8 file of texts, one a line: write nothing, but print of each its
            log-likelihood in nats, perplexity, number of tokens that were predicted, and the text;
            each is read as what goes on from the prompt, if there is one.
        length: tokens to add to a prompt, at most.
        ending: a model of poems has learnt where one ends: what goes on from a prompt ends where
            the "model" ends it, or goes on all its "length". A template is always filled.
        stop: texts that end what is written; they are left out.
        top_n: take only the most likely n tokens; 0 for all.
        top_p: take only the most likely tokens that have this share of probability together.
        min_p: take only tokens at least so likely, compared with the most likely one.
        repetition_penalty: above 1 makes tokens less likely that the text has already.
        forbid: characters (words, for a model of words) that are never written.
        temperature: divides the logits; 0 takes the most likely token.
        greedy: always take the most likely token, as temperature 0 does.
        unknown: whether the unknown token of a model of words is never taken, or ends the text.
        feed_unknown: a character of the template that the vocabulary lacks is shown as it is, and
            the model reads it as unknown; else it is an error.
        line_length: begin a new line after so many tokens.
        stream: show the text as it is made.
        best_of: of so many texts write the one that the model finds most likely, given characters
            that come later included.
        beams: in place of drawing, search for the most likely texts with so many hypotheses, and
            write the best ones, as many as `batch` says.
        length_penalty: exponent of the length that a search divides log-probabilities by.
        seed: of the random draws.
        batch: texts to write of each prompt or template, each with draws of its own.
        side_by_side: how many texts are written at once.
        weights: dtype of the weights; bfloat16 takes half the memory, and less time.
        jsonl: write a JSON object a line, with tokens and log-probabilities.
        step: which checkpoint: a step, the newest good one, or the best on held-out data.
        force: let a bidirectional model write, which it cannot do well: it saw the future.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    prompt: str | None = None
    template: str | None = None
    prompts: Path | None = None
    templates: Path | None = None
    score: Path | None = None
    length: int = 500
    ending: Literal["model", "length"] = "model"
    stop: tuple[str, ...] = ()
    top_n: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    forbid: str = ""
    temperature: float = 1.0
    greedy: bool = False
    unknown: Literal["never", "ends"] = "never"
    feed_unknown: bool = False
    line_length: int | None = None
    stream: bool = False
    best_of: int | None = None
    beams: int | None = None
    length_penalty: float = 1.0
    seed: int = 0
    batch: int = 1
    side_by_side: int = 64
    weights: Literal["float32", "bfloat16"] | None = None
    jsonl: bool = False
    step: int | Literal["newest", "best"] = "newest"
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("length", "batch", "line_length", "best_of", "beams", "side_by_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(f"{name} is {value}; it must be at most {most}")
        at_once = min(self.batch, self.side_by_side) * self.length
        at_once *= max(self.best_of or 1, self.beams or 1)
        if at_once > _MOST_AT_ONCE:
            raise ValueError(
                f"length is {self.length}, which makes {at_once:,} tokens of texts side by side; "
                f"lower length, side_by_side, best_of or beams: at most {_MOST_AT_ONCE:,} fit"
            )
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
        if any(not stop for stop in self.stop):
            raise ValueError("a stop text is empty; give at least one character")
        self._refuse_two("prompt", "template", "prompts", "templates")
        self._refuse_two("template", "prompts", "templates", "score")
        self._refuse_two(*_WAYS)
        if self.stream and self.jsonl:
            raise ValueError("both stream and jsonl are given; a JSON object is written whole")
        if self.beams is not None and self.batch > self.beams:
            raise ValueError(
                f"batch is {self.batch}, but {self.beams} beams find no more texts than that; "
                "raise beams"
            )

    def _refuse_two(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"both {given[0]} and {given[1]} are given; choose one of them")


def main() -> int:
    """The entry point."""
    return run_command(PROG, sample_command)


def sample_command(arguments: Sequence[str], prog: str = PROG) -> int:
    """Runs the command; raises ValueError for whatever the user can mend."""
    command = parse(SampleCommand, None, arguments, prog, HELP)
    with importing():
        from lstm_jax.cli import judging, writing

    if command.score is not None:
        judging.print_scores(command, command.score)
    else:
        writing.print_texts(command)
    return 0

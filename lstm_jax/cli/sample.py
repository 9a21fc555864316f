"""The command `sample.py`: writes text with a trained model."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lstm_jax.cli.arguments import parse, run_command

PROG = "sample.py"


@dataclass(frozen=True)
class SampleCommand:
    """Write text with a trained model; standard output carries the text alone.

    Attributes:
        run_dir: a folder that train.py made.
        prompt: what the text begins with; by default the run's first sample prompt.
        length: tokens to add to the prompt.
        top_n: take only the most likely n tokens; 0 for all.
        temperature: divides the logits; 0 takes the most likely token.
        greedy: always take the most likely token, as temperature 0 does.
        seed: of the random draws.
        batch: texts to write, each with draws of its own.
        step: which checkpoint; by default the newest good one.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    prompt: str | None = None
    length: int = 500
    top_n: int = 0
    temperature: float = 1.0
    greedy: bool = False
    seed: int = 0
    batch: int = 1
    step: int | None = None

    def __post_init__(self) -> None:
        for name in ("length", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.top_n < 0:
            raise ValueError(f"top_n is {self.top_n}; it must be 0 (all tokens) or above")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")
        if self.step is not None and self.step < 0:
            raise ValueError(f"step is {self.step}; it must be 0 or above")
        if self.prompt is not None and not self.prompt:
            raise ValueError("the prompt is empty; give at least one character")


def main() -> int:
    """The entry point."""
    return run_command(PROG, sample_command)


def sample_command(arguments: Sequence[str]) -> int:
    """Runs the command; raises ValueError for whatever the user can mend."""
    command = parse(SampleCommand, None, arguments, PROG)
    import jax
    import numpy as np

    from lstm_jax.sampling import FREE, generate
    from lstm_jax.training.run import RunFolder, load, read_description

    prompt = command.prompt
    if prompt is None:
        prompt = read_description(RunFolder(command.run_dir)).config.sample_prompts[0]
    model, params, vocabulary = load(command.run_dir, step=command.step)
    prefix = vocabulary.encode_prompt(prompt)
    template = np.concatenate([prefix, np.full(command.length, FREE, np.int32)])
    began = time.perf_counter()
    filled = generate(
        model,
        params,
        np.repeat(template[:, None], command.batch, axis=1),
        key=jax.random.key(command.seed),
        temperature=0.0 if command.greedy else command.temperature,
        top_n=command.top_n,
    )
    seconds = time.perf_counter() - began
    for row in filled.T:
        sys.stdout.write(vocabulary.decode(row) + "\n")
    rate = command.length * command.batch / seconds
    print(f"{rate:,.0f} tokens/s, compilation included", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

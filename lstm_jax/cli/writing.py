"""What `sample.py` writes, once its arguments are read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from lstm_jax.cli.output import json_line, tell
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.sampling import FilterOptions, with_weights
from lstm_jax.text import Vocabulary, read_lines
from lstm_jax.training.config import AnyConfig, PoemsConfig, ReviewsConfig
from lstm_jax.training.run import RunFolder, load, read_description
from lstm_jax.training.writing import (
    Template,
    Writer,
    Written,
    blanks_template,
    joined,
    pieces,
    prompt_template,
    unknown_options,
)


def load_writer(command: SampleCommand) -> Writer:
    """The run's model, and how it is to write.

    Raises:
        ValueError: see `load`; a bidirectional model; or a text that the vocabulary lacks.
    """
    model, params, vocabulary = load(command.run_dir, step=command.step)
    if model.config.bidirectional and not command.force:
        raise ValueError(
            f"{command.run_dir} holds a bidirectional model: it learnt with the future in view, so "
            "it cannot write what comes next; train one without --model.bidirectional, or see "
            "what comes of it with --force"
        )
    if command.weights is not None:
        model, params = with_weights(model, params, command.weights)
    forbidden, stops = unknown_options(vocabulary, command.unknown)
    filters = FilterOptions(
        temperature=0.0 if command.greedy else command.temperature,
        top_n=command.top_n,
        top_p=command.top_p,
        min_p=command.min_p,
        repetition_penalty=command.repetition_penalty,
        forbidden=(*forbidden, *vocabulary.encode(command.forbid).tolist()),
    )
    stops += tuple(tuple(vocabulary.encode_prompt(stop).tolist()) for stop in command.stop)
    return Writer(model, params, vocabulary, filters, stops, command.force)


def print_texts(command: SampleCommand) -> None:
    """Writes to standard output what the command asks for, and to standard error how fast."""
    writer = load_writer(command)
    templates = _templates(command, writer.vocabulary)
    began = time.perf_counter()
    if command.stream:
        tokens = sum(_stream(command, writer, *each) for each in _numbered(command, templates))
    else:
        tokens = 0
        for template, written in _texts(command, writer, templates):
            tokens += _print(command, writer.vocabulary, template, written)
    rate = tokens / (time.perf_counter() - began)
    tell(f"{rate:,.0f} tokens/s, compilation included")


def _numbered(command: SampleCommand, templates: list[Template]) -> Iterator[tuple[int, Template]]:
    rows = (template for template in templates for _ in range(command.batch))
    yield from enumerate(rows)


def _stream(command: SampleCommand, writer: Writer, row: int, template: Template) -> int:
    """Shows a text as it is made; gives the number of its tokens after the prompt."""
    tokens = 0

    def counted() -> Iterator[str]:
        nonlocal tokens
        for token in writer.stream(template, key=jax.random.key(command.seed), row=row):
            tokens += 1
            yield token

    try:
        for piece in pieces(writer.vocabulary, counted(), command.line_length):
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return tokens - _given(template)


def _texts(
    command: SampleCommand, writer: Writer, templates: list[Template]
) -> Iterator[tuple[Template, Written]]:
    if command.beams is not None:
        for template in templates:
            found = writer.search(template, command.beams, command.length_penalty)
            yield from ((template, each) for each in found[: command.batch])
        return
    key = jax.random.key(command.seed)
    rows = [template for _, template in _numbered(command, templates)]
    for first in range(0, len(rows), command.side_by_side):
        some = rows[first : first + command.side_by_side]
        if command.best_of is not None:
            found = writer.best_of(some, command.best_of, key=key, first_row=first)
        else:
            scored = command.jsonl
            found = writer.write(some, key=key, first_row=first, log_probabilities=scored)
        yield from zip(some, found, strict=True)


def _print(
    command: SampleCommand, vocabulary: Vocabulary, template: Template, written: Written
) -> int:
    """Writes a text, or its JSON line; gives the number of its tokens after the prompt."""
    text = joined(vocabulary, written.tokens, command.line_length)
    known = _given(template)
    if command.jsonl:
        scores = written.log_probabilities
        described = {
            "prompt": joined(vocabulary, written.tokens[:known]),
            "text": text,
            "tokens": written.tokens,
            "ids": written.ids.tolist(),
            "log_probabilities": scores,
            "stopped": written.stopped,
        }
        if written.score is not None:
            described["score"] = written.score
        text = json_line(described)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return len(written.tokens) - known


def _given(template: Template) -> int:
    """How many tokens of a template come before its first free place."""
    shown = template.shown
    return shown.index(None) if None in shown else len(shown)


def _templates(command: SampleCommand, vocabulary: Vocabulary) -> list[Template]:
    """What is to be filled: of a file's lines, of the command, or of the run's own settings."""
    if command.prompts is not None:
        lines = file_lines(command.prompts)
        return [_line_template(command, vocabulary, line, n, False) for n, line in lines]
    if command.templates is not None:
        lines = file_lines(command.templates)
        return [_line_template(command, vocabulary, line, n, True) for n, line in lines]
    config = read_description(RunFolder(command.run_dir)).config
    template, prompt = command.template, command.prompt
    if template is None and prompt is None:
        template, prompt = _own(config)
    if template is not None:
        return [blanks_template(vocabulary, template, feed_unknown=command.feed_unknown)]
    return [prompt_template(vocabulary, prompt or "", command.length)]


def _own(config: AnyConfig) -> tuple[str | None, str | None]:
    """The first template or prompt of a run's samples."""
    if isinstance(config, PoemsConfig):
        return config.sample_templates[0], None
    assert not isinstance(config, ReviewsConfig)
    return None, config.sample_prompts[0]


def _line_template(
    command: SampleCommand, vocabulary: Vocabulary, line: str, number: int, has_blanks: bool
) -> Template:
    try:
        if has_blanks:
            return blanks_template(vocabulary, line, feed_unknown=command.feed_unknown)
        return prompt_template(vocabulary, line, command.length)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def file_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that hold text, with their numbers from 1 on."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{str(path)!r} holds no line with text; give at least one")
    return lines

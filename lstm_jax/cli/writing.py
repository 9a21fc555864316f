"""What `sample.py` writes, once its arguments are read."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from lstm_jax.cli.output import json_line, tell
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.models import LanguageModel
from lstm_jax.sampling import FilterOptions, with_weights
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.writer import (
    Template,
    Writer,
    Written,
    blanks_template,
    joined,
    prompt_template,
    shown_pieces,
    unknown_options,
)
from lstm_jax.text import Vocabulary, read_lines
from lstm_jax.training.run import RunFolder, load, read_description

_LISTED_AT_MOST = 10


def load_writer(command: SampleCommand) -> Writer:
    """The run's model, and how it is to write.

    Raises:
        ValueError: see `load`; or a bidirectional model.
    """
    model, params, vocabulary, _ = load(command.run_dir, step=command.step, kind=LanguageModel)
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
        forbidden=(*forbidden, *_forbidden(vocabulary, command.forbid)),
    )
    stops += _stops(vocabulary, command.stop)
    goes_on = command.prompt is not None or command.prompts is not None
    if goes_on and command.ending == "model" and vocabulary.padding is not None:
        stops += ((vocabulary.padding,),)
    return Writer(model, params, vocabulary, filters, stops, command.force)


def _forbidden(vocabulary: Vocabulary, forbid: str) -> list[int]:
    """The ids of the tokens to forbid; one that the model cannot write needs no forbidding."""
    found = vocabulary.in_known_form(forbid)
    if vocabulary.kind == "char" and len(found) > len(forbid):
        apart = [each for each in unicodedata.normalize("NFC", forbid) if each not in vocabulary]
        raise ValueError(
            f"--forbid cannot name {_listed(apart)}: in this model's text that is a letter and its "
            "accents, tokens of their own; forbid one of these"
        )
    tokens = vocabulary.split(found)
    if missing := [token for token in dict.fromkeys(tokens) if token not in vocabulary]:
        note(f"the model never writes {_listed(missing)}, so --forbid need not name it")
    return [vocabulary.tokens.index(token) for token in tokens if token in vocabulary]


def _stops(vocabulary: Vocabulary, stops: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """The ids of the texts that end what is written; one that the model cannot write ends none."""
    found = []
    for stop in stops:
        if missing := vocabulary.outside(stop):
            note(f"the stop {stop!r} ends no text: the model never writes {_listed(missing)}")
        elif ids := vocabulary.encode(vocabulary.in_known_form(stop)).tolist():
            found.append(tuple(ids))
        else:
            note(f"the stop {stop!r} ends no text: it holds no word")
    return tuple(found)


def note_unknown(vocabulary: Vocabulary, texts: Iterable[str]) -> None:
    """Names on standard error what a model with an unknown token reads as that."""
    if vocabulary.unknown is None:
        return
    found: dict[str, None] = {}
    for text in texts:
        for token in vocabulary.outside(text):
            as_given = re.search(re.escape(token), text, re.IGNORECASE)
            found[as_given[0] if as_given else token] = None
    if found:
        note(f"not in the model's vocabulary, and read as unknown: {_listed(list(found))}")


def note(text: str) -> None:
    """Tells the user something on standard error."""
    tell(f"note: {text}")


def _listed(tokens: list[str]) -> str:
    more = len(tokens) - _LISTED_AT_MOST
    shown = ", ".join(map(repr, tokens[:_LISTED_AT_MOST]))
    return f"{shown} and {more} more" if more > 0 else shown


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
        for piece in shown_pieces(writer.vocabulary, template, counted(), command.line_length):
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return tokens - template.known


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
    text = "".join(shown_pieces(vocabulary, template, written.tokens, command.line_length))
    known = template.known
    if command.jsonl:
        scores = written.log_probabilities
        described = {
            "prompt": template.prompt or joined(vocabulary, written.tokens[:known]),
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


def _templates(command: SampleCommand, vocabulary: Vocabulary) -> list[Template]:
    """What is to be filled: of a file's lines, of the command, or of the run's own settings."""
    texts, has_blanks = _asked_for(command, vocabulary)
    if not command.feed_unknown:
        note_unknown(vocabulary, (text for _, text in texts))
    templates = []
    for place, text in texts:
        try:
            if has_blanks:
                feed_unknown = command.feed_unknown
                templates.append(blanks_template(vocabulary, text, feed_unknown=feed_unknown))
            else:
                templates.append(prompt_template(vocabulary, text, command.length))
        except ValueError as error:
            raise ValueError(f"{place}{error}") from None
    return templates


def _asked_for(
    command: SampleCommand, vocabulary: Vocabulary
) -> tuple[list[tuple[str, str]], bool]:
    """Texts, each after what errors say of its place; and whether these are templates."""
    file = command.templates if command.prompts is None else command.prompts
    if file is not None:
        lines = file_lines(file)
        return [(f"line {number}: ", line) for number, line in lines], file == command.templates
    if command.prompt is not None:
        return [("", command.prompt)], False
    if command.template is not None:
        return [("", command.template)], True
    config = read_description(RunFolder(command.run_dir)).config
    if isinstance(config, PoemsConfig):
        return [("", config.sample_templates[0])], True
    assert isinstance(config, LanguageConfig)
    return [("", _own_prompt(vocabulary, config.sample_prompts))], False


def _own_prompt(vocabulary: Vocabulary, prompts: Iterable[str]) -> str:
    """The first of a run's prompts that can be used, else a letter of its text."""
    for prompt in prompts:
        if vocabulary.unknown is not None or not vocabulary.outside(prompt):
            return prompt
    letters = (token for token in vocabulary.tokens if token.isalpha())
    return next(letters, vocabulary.tokens[-1])


def file_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that hold text, with their numbers from 1 on."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{str(path)!r} holds no line with text; give at least one")
    return lines

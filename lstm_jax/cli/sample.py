"""The `sample` command: generate texts with a trained model, or score given ones."""

import math
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lstm_jax.cli.console import json_line, put, tell
from lstm_jax.cli.options import SampleCommand
from lstm_jax.files import listed
from lstm_jax.models import LanguageModel
from lstm_jax.sampling import FilterOptions, best_of, perplexity, score, with_weights
from lstm_jax.systems.language import LanguageConfig
from lstm_jax.systems.poems import PoemsConfig
from lstm_jax.systems.writer import (
    BLANK,
    Template,
    Writer,
    Written,
    blanks_template,
    pieces,
    prompt_template,
    shown_pieces,
    unknown_options,
)
from lstm_jax.text import Vocabulary, read_lines
from lstm_jax.text.ids import Ids
from lstm_jax.training.log import figure
from lstm_jax.training.run import load


def run(command: SampleCommand) -> int:
    """Generate or score texts; raises ValueError for user errors."""
    model, params, vocabulary, config = load(command.run_dir, step=command.step, kind=LanguageModel)
    if config.model.bidirectional and not command.force:
        raise ValueError(
            f"{command.run_dir} holds a bidirectional model: it was trained to see the future, so "
            "it cannot generate text; train one without --model.bidirectional, or try it anyway "
            "with --force"
        )
    if command.weights is not None:
        model, params = with_weights(model, params, command.weights)
    writer = _writer(command, model, params, vocabulary)
    if command.score is not None:
        _print_scores(command, writer, command.score)
    else:
        _print_texts(command, writer, _templates(command, vocabulary, config))
    return 0


def _writer(
    command: SampleCommand, model: LanguageModel, params: Any, vocabulary: Vocabulary
) -> Writer:
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
    """Ids of the tokens to forbid, ignoring any that the model cannot generate."""
    found = vocabulary.in_known_form(forbid)
    if vocabulary.kind == "char" and len(found) > len(forbid):
        apart = [each for each in unicodedata.normalize("NFC", forbid) if each not in vocabulary]
        raise ValueError(
            f"--forbid cannot name {_listed(apart)}: in this model's text that is a letter and its "
            "accents, tokens of their own; forbid one of these"
        )
    tokens = vocabulary.split(found)
    if missing := [token for token in dict.fromkeys(tokens) if token not in vocabulary]:
        tell(f"note: the model never writes {_listed(missing)}, so --forbid need not name it")
    return [vocabulary.tokens.index(token) for token in tokens if token in vocabulary]


def _stops(vocabulary: Vocabulary, stops: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Ids of the stop texts, ignoring any that the model cannot generate."""
    found = []
    for stop in stops:
        missing = vocabulary.outside(stop)
        if not missing and (ids := vocabulary.encode(vocabulary.in_known_form(stop)).tolist()):
            found.append(tuple(ids))
            continue
        why = f"the model never writes {_listed(missing)}" if missing else "it holds no word"
        tell(f"note: the stop {stop!r} ends no text: {why}")
    return tuple(found)


def _note_unknown(vocabulary: Vocabulary, texts: Iterable[str]) -> None:
    """Report, on standard error, which tokens a model with an unknown token reads as unknown."""
    if vocabulary.unknown is None:
        return
    found: dict[str, None] = {}
    for text in texts:
        for token in vocabulary.outside(text):
            as_given = re.search(re.escape(token), text, re.IGNORECASE)
            found[as_given[0] if as_given else token] = None
    if found:
        tell(f"note: not in the model's vocabulary, and read as unknown: {_listed(found)}")


def _listed(tokens: Iterable[str]) -> str:
    return listed([*map(repr, tokens)])


def _templates(command: SampleCommand, vocabulary: Vocabulary, config: Any) -> list[Template]:
    """Templates from a file's lines, the command line, or the run's own settings."""
    file = command.prompts or command.templates
    has_blanks = command.templates is not None or command.template is not None
    if file is not None:
        texts = [(f"line {number}: ", line) for number, line in file_lines(file)]
    else:
        text = command.template if command.prompt is None else command.prompt
        if text is None:
            has_blanks = isinstance(config, PoemsConfig)
            text = config.sample_templates[0] if has_blanks else _own_prompt(vocabulary, config)
        texts = [("", text)]
    if not command.feed_unknown:
        _note_unknown(
            vocabulary, (text.replace(BLANK, "") if has_blanks else text for _, text in texts)
        )
    template = partial(prompt_template, length=command.length)
    if has_blanks:
        template = partial(blanks_template, feed_unknown=command.feed_unknown)
    templates = []
    for place, text in texts:
        try:
            templates.append(template(vocabulary, text))
        except ValueError as error:
            raise ValueError(f"{place}{error}") from None
    return templates


def _own_prompt(vocabulary: Vocabulary, config: LanguageConfig) -> str:
    """The run's first usable prompt, else a letter of its text."""
    for prompt in config.sample_prompts:
        if vocabulary.unknown is not None or not vocabulary.outside(prompt):
            return prompt
    letters = (token for token in vocabulary.tokens if token.isalpha())
    return next(letters, vocabulary.tokens[-1])


def file_lines(path: Path) -> list[tuple[int, str]]:
    """Non-blank lines of a file, numbered from 1."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{str(path)!r} holds no line with text; give at least one")
    return lines


def _print_texts(command: SampleCommand, writer: Writer, templates: list[Template]) -> None:
    """Print the texts that the command asks for, and the speed to standard error."""
    rows = [template for template in templates for _ in range(command.batch)]
    tokens, began = 0, time.perf_counter()
    if command.stream:
        for row, template in enumerate(rows):
            tokens += _stream(command, writer, row, template)
    else:
        for template, written in _written(command, writer, templates, rows):
            shown = shown_pieces(writer.vocabulary, template, written.tokens, command.line_length)
            text = "".join(shown)
            put((_described(writer, template, written, text) if command.jsonl else text) + "\n")
            tokens += len(written.tokens) - template.known
    rate = tokens / (time.perf_counter() - began)
    tell(f"{rate:,.0f} tokens/s, compilation included")


def _stream(command: SampleCommand, writer: Writer, row: int, template: Template) -> int:
    """Print a text while it is generated; returns the number of tokens after the prompt."""
    tokens = 0

    def counted() -> Iterator[str]:
        nonlocal tokens
        for token in writer.stream(template, key=jax.random.key(command.seed), row=row):
            tokens += 1
            yield token

    try:
        for piece in shown_pieces(writer.vocabulary, template, counted(), command.line_length):
            put(piece)
    finally:
        put("\n")
    return tokens - template.known


def _written(
    command: SampleCommand, writer: Writer, templates: list[Template], rows: list[Template]
) -> Iterator[tuple[Template, Written]]:
    if command.beams is not None:
        for template in templates:
            found = writer.search(template, command.beams, command.length_penalty)
            yield from ((template, each) for each in found[: command.batch])
        return
    key = jax.random.key(command.seed)
    for first in range(0, len(rows), command.side_by_side):
        some = rows[first : first + command.side_by_side]
        if command.best_of is not None:
            found = writer.write(some, best_of, number=command.best_of, key=key, first_row=first)
        else:
            scored = command.jsonl
            found = writer.write(some, key=key, first_row=first, log_probabilities=scored)
        yield from zip(some, found, strict=True)


def _described(writer: Writer, template: Template, written: Written, text: str) -> str:
    known = written.tokens[: template.known]
    described = {
        "prompt": template.prompt or "".join(pieces(writer.vocabulary, known)),
        "text": text,
        "tokens": written.tokens,
        "ids": written.ids.tolist(),
        "log_probabilities": written.log_probabilities,
        "stopped": written.stopped,
    }
    score = {} if written.score is None else {"score": written.score}
    return json_line(described | score)


def _print_scores(command: SampleCommand, writer: Writer, path: Path) -> None:
    """Print one line per text, and the perplexity of all to standard error."""
    vocabulary, lines, prompt = writer.vocabulary, file_lines(path), command.prompt or ""
    _note_unknown(vocabulary, (prompt, *(line for _, line in lines)))
    context = vocabulary.encode_prompt(prompt) if prompt else ()
    texts = [_ids(vocabulary, line, number, 1 if prompt else 2) for number, line in lines]
    contexts, batch_size = [context] * len(texts), command.side_by_side
    found = score(writer.model, writer.params, texts, contexts=contexts, batch_size=batch_size)
    for (_, line), ids, each in zip(lines, texts, found, strict=True):
        if command.jsonl:
            scores = each.log_probabilities.tolist()
            described = {
                "text": line,
                "log_likelihood": each.log_likelihood,
                "perplexity": each.perplexity,
                "tokens": [vocabulary.tokens[id] for id in ids],
                "log_probabilities": [None] * (len(ids) - len(scores)) + scores,
            }
            put(json_line(described) + "\n")
        else:
            likelihood, tokens = each.log_likelihood, len(each.log_probabilities)
            put(f"{likelihood:.4f}\t{figure(each.perplexity)}\t{tokens}\t{line}\n")
    total = math.fsum(each.log_likelihood for each in found)
    tokens = sum(len(each.log_probabilities) for each in found)
    tell(
        f"{figure(-total / tokens)} nats per token, "
        f"perplexity {figure(perplexity(total, tokens))}, "
        f"over {tokens:,} tokens of {len(found):,} texts"
    )


def _ids(vocabulary: Vocabulary, line: str, number: int, least: int) -> Ids:
    try:
        ids = vocabulary.encode_prompt(line, name="text")
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if len(ids) < least:
        raise ValueError(
            f"line {number} has a single token and no context to predict it from; give at least "
            "two tokens, or a context as --prompt"
        )
    return ids

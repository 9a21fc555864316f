"""What `sample.py --score` prints: how likely a model finds given texts."""

from __future__ import annotations

import math
from pathlib import Path

from lstm_jax.cli.output import json_line, tell
from lstm_jax.cli.sample import SampleCommand
from lstm_jax.cli.writing import file_lines, load_writer, note_unknown
from lstm_jax.sampling import TextScore, perplexity, score
from lstm_jax.text import Vocabulary
from lstm_jax.text.ids import Ids
from lstm_jax.training.log import figure


def print_scores(command: SampleCommand, path: Path) -> None:
    """Prints a line a text to standard output, and the perplexity of all to standard error."""
    writer = load_writer(command)
    lines = file_lines(path)
    prompt = command.prompt or ""
    note_unknown(writer.vocabulary, (prompt, *(line for _, line in lines)))
    context = writer.vocabulary.encode_prompt(prompt) if prompt else ()
    texts = [_ids(writer.vocabulary, line, number, 1 if prompt else 2) for number, line in lines]
    contexts = [context] * len(texts)
    batch_size = command.side_by_side
    found = score(writer.model, writer.params, texts, contexts=contexts, batch_size=batch_size)
    for (_, line), ids, each in zip(lines, texts, found, strict=True):
        print(_shown(command, writer.vocabulary, line, ids, each))
    total = math.fsum(each.log_likelihood for each in found)
    tokens = sum(len(each.log_probabilities) for each in found)
    tell(
        f"{figure(-total / tokens)} nats a token, perplexity {figure(perplexity(total, tokens))}, "
        f"over {tokens:,} tokens of {len(found):,} texts"
    )


def _ids(vocabulary: Vocabulary, line: str, number: int, least: int) -> Ids:
    try:
        ids = vocabulary.encode_prompt(line, name="text")
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if len(ids) < least:
        raise ValueError(
            f"line {number} has a single token, and nothing that it is told from; give at least "
            "two, or what comes before as --prompt"
        )
    return ids


def _shown(
    command: SampleCommand, vocabulary: Vocabulary, line: str, ids: Ids, found: TextScore
) -> str:
    predicted = len(found.log_probabilities)
    if not command.jsonl:
        numbers = f"{found.log_likelihood:.4f}\t{figure(found.perplexity)}\t{predicted}"
        return f"{numbers}\t{line}"
    described = {
        "text": line,
        "log_likelihood": found.log_likelihood,
        "perplexity": found.perplexity,
        "tokens": [vocabulary.tokens[id] for id in ids],
        "log_probabilities": [None] * (len(ids) - predicted) + found.log_probabilities.tolist(),
    }
    return json_line(described)

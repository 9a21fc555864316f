"""From a prompt or a template of text to the texts that a model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling import FREE, generate
from lstm_jax.text import Vocabulary
from lstm_jax.text.ids import Ids
from lstm_jax.training.config import SampleConfig

BLANK = "*"
"""Stands in a template for a place to be filled."""


class Template(NamedTuple):
    """Places in a row, some of them given.

    Attributes:
        ids: int32 `[T]`, `FREE` where a token is to be filled in.
        shown: the text of each given place, None where it is free.
    """

    ids: Ids
    shown: tuple[str | None, ...]


def prompt_template(vocabulary: Vocabulary, prompt: str, length: int) -> Template:
    """A prompt, and `length` free places after it.

    Raises:
        ValueError: the prompt is empty, or has a token that the vocabulary lacks.
    """
    ids = vocabulary.encode_prompt(prompt)
    shown = [vocabulary.tokens[token] for token in ids]
    return Template(
        np.concatenate([ids, np.full(length, FREE, np.int32)]), (*shown, *[None] * length)
    )


def blanks_template(vocabulary: Vocabulary, text: str, *, feed_unknown: bool = False) -> Template:
    """A text in which each `*` is to be filled: characters, or words between spaces.

    Args:
        vocabulary: of the model.
        text: the template.
        feed_unknown: a token that the vocabulary lacks is shown as it is, and fed to the model as
            the unknown token, or the padding where there is none.

    Raises:
        ValueError: the template is empty, or has a token that the vocabulary lacks.
    """
    places = text.split() if vocabulary.kind == "word" else list(text)
    if not places:
        raise ValueError("the template is empty; give characters to keep and * for those to fill")
    ids = np.full(len(places), FREE, np.int32)
    stand_in = vocabulary.padding if vocabulary.unknown is None else vocabulary.unknown
    for place, token in enumerate(places):
        if token == BLANK:
            continue
        if feed_unknown and stand_in is not None and token not in vocabulary:
            ids[place] = stand_in
        else:
            ids[place] = vocabulary.encode_prompt(token)[0]
    return Template(ids, tuple(None if token == BLANK else token for token in places))


def write(
    model: LanguageModel,
    params: LanguageModelParams,
    vocabulary: Vocabulary,
    template: Template,
    sample: SampleConfig,
    *,
    key: Array,
    texts: int = 1,
    allow_bidirectional: bool = False,
) -> list[list[str]]:
    """Fills a template `texts` times, each with draws of its own; padding is never chosen.

    Returns:
        For each text its tokens; those from the first unknown one on are left out where
        `sample.unknown` is "ends".
    """
    filled = generate(
        model,
        params,
        np.repeat(template.ids[:, None], texts, axis=1),
        key=key,
        temperature=sample.temperature,
        top_n=sample.top_n,
        forbidden=_forbidden(vocabulary, sample),
        allow_bidirectional=allow_bidirectional,
    )
    return [_tokens(vocabulary, template, row, sample) for row in filled.T]


def joined(vocabulary: Vocabulary, tokens: Sequence[str], line_length: int | None = None) -> str:
    """The text of tokens, with a line end after every `line_length` of them."""
    space = " " if vocabulary.kind == "word" else ""
    if line_length is None:
        return space.join(tokens)
    starts = range(0, len(tokens), line_length)
    return "\n".join(space.join(tokens[start : start + line_length]) for start in starts)


def _forbidden(vocabulary: Vocabulary, sample: SampleConfig) -> tuple[int, ...]:
    never = [vocabulary.padding, vocabulary.unknown if sample.unknown == "never" else None]
    return tuple(token for token in never if token is not None)


def _tokens(
    vocabulary: Vocabulary, template: Template, ids: Ids, sample: SampleConfig
) -> list[str]:
    tokens = []
    for token, shown in zip(ids, template.shown, strict=True):
        if shown is None and sample.unknown == "ends" and token == vocabulary.unknown:
            break
        tokens.append(vocabulary.tokens[token] if shown is None else shown)
    return tokens

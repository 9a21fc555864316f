"""Turn text prompts and templates into generated texts."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax import Array, random

from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling import (
    FREE,
    FilterOptions,
    Texts,
    beam_search,
    generate,
    stack_rows,
    stream,
)
from lstm_jax.systems.base import System
from lstm_jax.text import Vocabulary
from lstm_jax.text.ids import Ids

BLANK = "*"  # marks a place to fill in, in a template


class Template(NamedTuple):
    """A sequence of places, some of them given."""

    ids: Ids  # int32 [T], `FREE` where a token is to be filled in
    shown: tuple[str | None, ...]  # the text of each given place
    prompt: str | None = None  # the original prompt, if the first places came from one

    @property
    def known(self) -> int:
        """Number of places before the first free one."""
        return self.shown.index(None) if None in self.shown else len(self.shown)


class Written(NamedTuple):
    """A generated text."""

    ids: Ids  # int32 [T]
    tokens: tuple[str, ...]  # text of each
    log_probabilities: tuple[float | None, ...] | None = None  # in nats; None for prompt tokens
    stopped: bool = False  # whether by a stop sequence
    score: float | None = None  # by which beam search ranks it


@dataclass(frozen=True)
class Writer:
    """A trained language model with settings for choosing tokens."""

    model: LanguageModel
    params: LanguageModelParams
    vocabulary: Vocabulary
    #: see `FilterOptions`; padding is also forbidden, unless it is a stop
    filters: FilterOptions = field(default_factory=lambda: FilterOptions())
    #: sequences of token ids that end a text and are removed
    stops: tuple[tuple[int, ...], ...] = ()
    allow_bidirectional: bool = False  # see `generate`

    def write(
        self, templates: Sequence[Template], way: Callable[..., Texts] = generate, **options: Any
    ) -> list[Written]:
        """Fill templates in one batch, each with its own draws; see `way` for options."""
        rows, lengths = stack_rows([template.ids for template in templates])
        options |= {"lengths": lengths, **self._options()}
        texts = way(self.model, self.params, rows, **options)
        written = []
        for index, template in enumerate(templates):
            ids, scores = texts.row(index), None
            if texts.log_probabilities is not None:
                column = texts.log_probabilities[: len(ids), index].tolist()
                scores = tuple(None if np.isnan(value) else value for value in column)
            tokens = self._tokens(template, ids)
            written.append(Written(ids, tokens, scores, bool(texts.stopped[index])))
        return written

    def stream(self, template: Template, *, key: Array, row: int = 0) -> Iterator[str]:
        """Yield the tokens of one text as they are decoded, its prompt first."""
        prompt = template.shown[: template.known]
        yield from map(str, prompt)
        options = {"first_row": row, **self._options()}
        chunks = stream(self.model, self.params, template.ids[:, None], key=key, **options)
        # A bidirectional model is fed its prompt token by token.
        begun = 0 if self.model.config.bidirectional else len(prompt)
        tokens = (int(token) for (ids,) in chunks for token in ids)
        for place, token in enumerate(tokens, begun):
            if place >= len(prompt):
                yield self._shown(template, place, token)

    def search(self, template: Template, beams: int, length_penalty: float) -> list[Written]:
        """Return the fillings that beam search finds, best first; see `beam_search`."""
        options: Any = {"forbidden": self._options()["forbidden"], "stops": self.stops}
        options |= {"beams": beams, "length_penalty": length_penalty}
        found = beam_search(self.model, self.params, template.ids, **options)
        return [
            Written(ids, self._tokens(template, ids), None, stopped, score)
            for ids, _, score, stopped in found
        ]

    def _options(self) -> dict[str, Any]:
        forbidden, padding = [*self.filters.get("forbidden", ())], self.vocabulary.padding
        if padding is not None and (padding,) not in self.stops:
            forbidden.append(padding)
        options = {"forbidden": forbidden, "stops": self.stops}
        return {**self.filters, **options, "allow_bidirectional": self.allow_bidirectional}

    def _tokens(self, template: Template, ids: Ids) -> tuple[str, ...]:
        return tuple(self._shown(template, place, int(id)) for place, id in enumerate(ids))

    def _shown(self, template: Template, place: int, token: int) -> str:
        return template.shown[place] or self.vocabulary.tokens[token]


def write_samples(
    system: System, params: Any, step: int, templates: Mapping[str, Template]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each template with the model's text for it at a training step."""
    vocabulary, sample = system.vocabulary, system.config.sample
    forbidden, stops = unknown_options(vocabulary, sample.unknown)
    filters = FilterOptions(temperature=sample.temperature, top_n=sample.top_n, forbidden=forbidden)
    writer = Writer(system.model, params, vocabulary, filters, stops)
    key = random.fold_in(random.key(system.config.seed), step)
    for name, template in templates.items():
        (written,) = writer.write([template], key=key)
        yield name, "".join(shown_pieces(vocabulary, template, written.tokens))


def unknown_options(
    vocabulary: Vocabulary, unknown: str
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Forbidden tokens and stop sequences, with `unknown` "never" or "ends"."""
    if vocabulary.unknown is None:
        return (), ()
    if unknown == "ends":
        return (), ((vocabulary.unknown,),)
    return (vocabulary.unknown,), ()


def prompt_template(vocabulary: Vocabulary, prompt: str, length: int) -> Template:
    """A prompt followed by `length` free places; raises ValueError as `encode_prompt`."""
    ids = np.concatenate([vocabulary.encode_prompt(prompt), np.full(length, FREE, np.int32)])
    shown = vocabulary.split(vocabulary.in_known_form(prompt))
    return Template(ids, (*shown, *[None] * length), prompt)


def blanks_template(vocabulary: Vocabulary, text: str, *, feed_unknown: bool = False) -> Template:
    """Make a template of a text in which each `*`, a character or a word, is to be filled in.

    Raises ValueError if it is empty or contains an unknown token. `feed_unknown` displays such a
    token as it is, but feeds the model the unknown token, or else the padding.
    """
    is_of_words = vocabulary.is_of_words
    places = text.split() if is_of_words else list(vocabulary.in_known_form(text))
    if not places:
        raise ValueError("the template is empty; give characters to keep and * for those to fill")
    ids = np.full(len(places), FREE, np.int32)
    stand_in = vocabulary.padding if vocabulary.unknown is None else vocabulary.unknown
    for place, token in enumerate(places):
        if token == BLANK:
            continue
        if is_of_words and BLANK in token:
            raise ValueError(
                f"the template's {token!r} holds a {BLANK}, which stands for a whole word; put "
                "spaces around each"
            )
        is_known = any(each in vocabulary for each in vocabulary.split(token))
        given = stand_in if feed_unknown and not is_known else None
        ids[place] = vocabulary.encode_prompt(token, name="template")[0] if given is None else given
    return Template(ids, tuple(None if token == BLANK else token for token in places))


def pieces(
    vocabulary: Vocabulary, tokens: Iterable[str], line_length: int | None = None
) -> Iterator[str]:
    """Yield the text of tokens piece by piece, with a line end after every `line_length` tokens."""
    space = " " if vocabulary.is_of_words else ""
    for place, token in enumerate(tokens):
        is_new_line = line_length is not None and place % line_length == 0
        before = "\n" if is_new_line else space
        yield (before if place else "") + token


def shown_pieces(
    vocabulary: Vocabulary,
    template: Template,
    tokens: Iterable[str],
    line_length: int | None = None,
) -> Iterator[str]:
    """Like `pieces`, but a continued prompt is shown as it was given."""
    found = pieces(vocabulary, tokens, line_length)
    if template.prompt is not None and line_length is None:
        # Words are joined by spaces here.
        yield template.prompt.rstrip() if vocabulary.is_of_words else template.prompt
        found = itertools.islice(found, template.known, None)
    yield from found

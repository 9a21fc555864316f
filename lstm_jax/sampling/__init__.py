"""Text generation and scoring with a trained language model, in jitted loops."""

from lstm_jax.sampling.beams import Hypothesis, beam_search
from lstm_jax.sampling.decode import FREE
from lstm_jax.sampling.filters import FilterOptions, Filters, make_filters
from lstm_jax.sampling.generation import (
    Texts,
    WeightDtype,
    best_of,
    generate,
    stack_rows,
    stream,
    with_weights,
)
from lstm_jax.sampling.scoring import TextScore, perplexity, score

__all__ = [
    "FREE",
    "FilterOptions",
    "Filters",
    "Hypothesis",
    "TextScore",
    "Texts",
    "WeightDtype",
    "beam_search",
    "best_of",
    "generate",
    "make_filters",
    "perplexity",
    "score",
    "stack_rows",
    "stream",
    "with_weights",
]

"""Text generation and scoring with a trained language model, in jitted loops."""

from lstm_jax.sampling.beams import Hypothesis as Hypothesis
from lstm_jax.sampling.beams import beam_search as beam_search
from lstm_jax.sampling.decode import FREE as FREE
from lstm_jax.sampling.filters import FilterOptions as FilterOptions
from lstm_jax.sampling.filters import Filters as Filters
from lstm_jax.sampling.filters import make_filters as make_filters
from lstm_jax.sampling.generation import Texts as Texts
from lstm_jax.sampling.generation import WeightDtype as WeightDtype
from lstm_jax.sampling.generation import best_of as best_of
from lstm_jax.sampling.generation import generate as generate
from lstm_jax.sampling.generation import stack_rows as stack_rows
from lstm_jax.sampling.generation import stream as stream
from lstm_jax.sampling.generation import with_weights as with_weights
from lstm_jax.sampling.scoring import TextScore as TextScore
from lstm_jax.sampling.scoring import perplexity as perplexity
from lstm_jax.sampling.scoring import score as score

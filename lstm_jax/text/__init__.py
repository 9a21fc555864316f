"""From text to int32 ids: readers, vocabularies, batches. Only the standard library and numpy."""

from lstm_jax.text.batches import (
    NOT_COUNTED,
    Lanes,
    PaddedLanes,
    heldout_split,
    lanes,
    padded_lanes,
)
from lstm_jax.text.readers import python_documentation, read_lines, read_text
from lstm_jax.text.reviews import (
    Reviews,
    ReviewSet,
    build_review_vocabulary,
    encode_review,
    read_reviews,
)
from lstm_jax.text.sequences import LengthBatches, pad_rows, split_rows
from lstm_jax.text.tokenizers import review_words, tokens_of_lines, words
from lstm_jax.text.vectors import WordVectors, read_vectors
from lstm_jax.text.vocabulary import Vocabulary, build_char_vocabulary, build_word_vocabulary

__all__ = [
    "NOT_COUNTED",
    "Lanes",
    "LengthBatches",
    "PaddedLanes",
    "ReviewSet",
    "Reviews",
    "Vocabulary",
    "WordVectors",
    "build_char_vocabulary",
    "build_review_vocabulary",
    "build_word_vocabulary",
    "encode_review",
    "heldout_split",
    "lanes",
    "pad_rows",
    "padded_lanes",
    "python_documentation",
    "read_lines",
    "read_reviews",
    "read_text",
    "read_vectors",
    "review_words",
    "split_rows",
    "tokens_of_lines",
    "words",
]

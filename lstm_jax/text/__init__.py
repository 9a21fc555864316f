"""Text in, int32 ids out: readers, vocabularies, batches. Standard library and numpy only."""

from lstm_jax.text.batches import Lanes, PaddedLanes, heldout_split, lanes, padded_lanes
from lstm_jax.text.readers import python_documentation, read_text
from lstm_jax.text.tokenizers import words
from lstm_jax.text.vocabulary import Vocabulary, build_char_vocabulary, build_word_vocabulary

__all__ = [
    "Lanes",
    "PaddedLanes",
    "Vocabulary",
    "build_char_vocabulary",
    "build_word_vocabulary",
    "heldout_split",
    "lanes",
    "padded_lanes",
    "python_documentation",
    "read_text",
    "words",
]

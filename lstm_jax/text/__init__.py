"""From text to int32 ids: readers, vocabularies, batches. Only the standard library and numpy."""

from lstm_jax.text.batches import NOT_COUNTED as NOT_COUNTED
from lstm_jax.text.batches import Lanes as Lanes
from lstm_jax.text.batches import PaddedLanes as PaddedLanes
from lstm_jax.text.batches import heldout_split as heldout_split
from lstm_jax.text.batches import lanes as lanes
from lstm_jax.text.batches import padded_lanes as padded_lanes
from lstm_jax.text.readers import python_documentation as python_documentation
from lstm_jax.text.readers import read_lines as read_lines
from lstm_jax.text.readers import read_text as read_text
from lstm_jax.text.reviews import Reviews as Reviews
from lstm_jax.text.reviews import ReviewSet as ReviewSet
from lstm_jax.text.reviews import build_review_vocabulary as build_review_vocabulary
from lstm_jax.text.reviews import encode_review as encode_review
from lstm_jax.text.reviews import read_reviews as read_reviews
from lstm_jax.text.sequences import LengthBatches as LengthBatches
from lstm_jax.text.sequences import pad_rows as pad_rows
from lstm_jax.text.sequences import split_rows as split_rows
from lstm_jax.text.tokenizers import review_words as review_words
from lstm_jax.text.tokenizers import tokens_of_lines as tokens_of_lines
from lstm_jax.text.tokenizers import words as words
from lstm_jax.text.vectors import WordVectors as WordVectors
from lstm_jax.text.vectors import read_vectors as read_vectors
from lstm_jax.text.vocabulary import Vocabulary as Vocabulary
from lstm_jax.text.vocabulary import build_char_vocabulary as build_char_vocabulary
from lstm_jax.text.vocabulary import build_word_vocabulary as build_word_vocabulary

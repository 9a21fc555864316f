"""Words and batches exactly as in a published TensorFlow word model, including its flaws."""

import string
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_jax.text import Vocabulary
from lstm_jax.text.ids import Ids, as_ids
from lstm_jax.text.vocabulary import UNKNOWN_WORD, frequent

UNUSED_WORD = "<unused>"

# The published character class joins these without escaping: its "\]" is an escaped bracket, so the
# backslash is not in the class and stays in the text.
_PUNCTUATION = set(string.punctuation) - set("-'\\")


def published_words(text: str, *, skip: int = 7675) -> list[str]:
    r"""Return the lower-cased words of `text`.

    Drops the first `skip` characters: the file's preface, 7675 with CRLF line ends. Deletes line
    ends (LF, CRLF) instead of replacing them, which joins the last word of a line to the first of
    the next: the flaw reproduced here. Then treats every ASCII punctuation character except `-`,
    `'` and the backslash as a space. To get ids, pass the words to `Vocabulary.encode_tokens`;
    `encode` would split a few of them again. Raises ValueError if `text` has at most `skip`
    characters.
    """
    if len(text) <= skip:
        raise ValueError(
            f"skipping {skip} characters leaves nothing of a text of {len(text)}; give more text"
        )
    joined = text[skip:].replace("\r\n", "").replace("\n", "")
    return joined.translate(dict.fromkeys(map(ord, _PUNCTUATION), " ")).lower().split()


def published_vocabulary(words: Iterable[str], *, min_count: int = 6) -> Vocabulary:
    """Return the vocabulary of the words that occur at least `min_count` times.

    Id 0 is "unknown" and stands for every other word; the rest follow from id 1 in order of first
    occurrence. One id of the published table belongs to no word, and is `UNUSED_WORD` here; it is
    that of the literal word "unknown" if that is frequent (0 replaced it), else the last one. So F
    frequent words make F + 1 or F + 2 tokens. Raises ValueError if there are no words, or none is
    frequent enough.
    """
    # A Counter keeps the order of first occurrence.
    kept = [UNUSED_WORD if w == UNKNOWN_WORD else w for w in frequent(Counter(words), min_count)]
    last = () if UNUSED_WORD in kept else (UNUSED_WORD,)
    return Vocabulary("word", (UNKNOWN_WORD, *kept, *last), 0)


class PublishedBatches(NamedTuple):
    """Batches of consecutive pieces of a text: `inputs` and `targets`, int32 `[S, T, B]`."""

    inputs: Ids
    targets: Ids

    @property
    def batches(self) -> int:
        """S, the number of batches per epoch."""
        return len(self.inputs)

    def batch(self, step: int, seed: int) -> tuple[Ids, Ids]:
        """The inputs and targets of a step, each `[T, B]`; each epoch has its own order."""
        epoch, index = divmod(step, self.batches)
        place = np.random.default_rng([seed, epoch]).permutation(self.batches)[index]
        return self.inputs[place], self.targets[place]


def published_batches(
    ids: npt.ArrayLike, *, batch_size: int, sequence_length: int
) -> PublishedBatches:
    """Cut the stream `ids` [N] into batches in the way of the published model.

    It is cut into S = N // (B * T) + 1 pieces of nearly equal length; each is repeated from its
    start until it fills B rows of T in sequence, the columns of a batch. A row's targets are the
    row rolled by one, so its last target is its own first word: the flaw reproduced here. Raises
    ValueError if a piece would be empty.
    """
    stream = as_ids(ids)
    pieces = len(stream) // (batch_size * sequence_length) + 1
    if len(stream) < pieces:
        raise ValueError(
            f"{len(stream)} tokens cannot be cut into {pieces} pieces, none empty; "
            "give more text, or use a larger batch size or sequence length"
        )
    shape = (batch_size, sequence_length)
    rows_SBT = np.stack([np.resize(piece, shape) for piece in np.array_split(stream, pieces)])
    inputs = np.ascontiguousarray(rows_SBT.swapaxes(1, 2))
    return PublishedBatches(inputs, np.roll(inputs, -1, axis=1))

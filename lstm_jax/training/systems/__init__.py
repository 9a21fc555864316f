"""The kinds of system that a run trains, each from its own data to its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from lstm_jax.text import Vocabulary
from lstm_jax.training.config import AnyConfig, LanguageConfig, PoemsConfig
from lstm_jax.training.state import Objective


class System(Protocol):
    """What the training loop needs to know of a system: data, and what to learn from it."""

    @property
    def config(self) -> AnyConfig:
        """The run's settings."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens."""

    @property
    def sha256(self) -> str:
        """Of the data: another value is other data."""

    @property
    def objective(self) -> Objective:
        """What is learnt."""

    @property
    def batches(self) -> int:
        """Batches of one epoch."""

    @property
    def has_perplexity(self) -> bool:
        """Whether the loss is one of a prediction of tokens."""

    @property
    def heldout_batch_size(self) -> int:
        """Sequences side by side in held-out batches; 0 if nothing is held out."""

    def summary(self) -> str:
        """What the data is, in a line or a few."""

    def first_params(self, params: Any) -> Any:
        """The parameters that training starts from, given those that were drawn."""

    def files(self) -> dict[str, bytes]:
        """What the run folder keeps of the data, by file name."""

    def feed(self) -> Callable[[int], Any]:
        """A function from the step's number to the data that its batch is in, on the devices."""

    def heldout(self) -> Iterator[Any]:
        """Batches that hold every held-out token once."""

    def with_samples(self, *, replace: bool) -> System:
        """The system, once its prompts or templates are known to be of use.

        Args:
            replace: whether those with something that the data lacks are left out, or give way to
                something of the data's own.

        Raises:
            ValueError: one can't be used, and is not to be replaced.
        """

    def samples(self, params: Any, step: int) -> Iterator[tuple[str, str]]:
        """What the model writes: (prompt, text)."""


def read_system(config: AnyConfig, kept: Path | None = None) -> System:
    """Reads a run's data.

    Args:
        config: the run's settings.
        kept: the folder of a run that exists, with the files that it keeps. A new run that begins
            with another's weights takes that one's vocabulary and frozen vectors.

    Raises:
        ValueError: the data can't be used, with the cure.
    """
    source, vocabulary = kept, None
    if config.init_from is not None:
        source = Path(config.init_from) if kept is None else kept
        vocabulary = Vocabulary.load(source / "vocab.json")
    # Only the system asked for is imported: pooch, say, is of no use to the others.
    if isinstance(config, LanguageConfig):
        from lstm_jax.training.systems.language import read_language

        return read_language(config, kept, vocabulary)
    if isinstance(config, PoemsConfig):
        from lstm_jax.training.systems.poems import read_poems_system

        return read_poems_system(config, vocabulary)
    from lstm_jax.training.systems.reviews import read_reviews_system

    return read_reviews_system(config, source, vocabulary)

"""Adds a system to train.py: a tagger that marks letters next to an equal letter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from lstm_jax import StackConfig, init_stack, run_stack, systems
from lstm_jax.cli.main import train_command
from lstm_jax.losses import TokenSums
from lstm_jax.settings import Count
from lstm_jax.systems.base import BatchSums, Objective, System, TrainConfig
from lstm_jax.text import Vocabulary

TOKENS = "_abc"  # the first one pads


class Tagged(NamedTuple):
    """A batch of texts: int32 tokens, bool tags, and the mask of real tokens; each `[T, B]`."""

    tokens: Any
    tags: Any
    mask: Any


@dataclass(frozen=True)
class TaggerConfig(TrainConfig):
    """Settings, which become flags of train.py: the longest text's tokens, and the network."""

    length: Count = 20
    model: StackConfig = field(default_factory=StackConfig)


@dataclass(frozen=True)
class Tagger(Objective):
    """The model, token ids -> recurrent stack -> a logit for each token's tag, and its loss."""

    config: StackConfig

    def init(self, key: jax.Array) -> Any:
        return init_stack(key, self.config, len(TOKENS)), jnp.zeros(self.config.output_size)

    def logits(self, params: Any, tokens: Any, **options: Any) -> jax.Array:
        return run_stack(self.config, params[0], None, tokens, **options)[1] @ params[1]

    def sums(self, params: Any, carry: Any, data: Any, index: Any, dropout_key: Any) -> Any:
        tokens, tags, mask = map(jnp.asarray, data)
        logits = self.logits(params, tokens, mask=mask, dropout_key=dropout_key)
        losses = jax.nn.softplus(jnp.where(tags, -logits, logits))
        counted = (losses, (logits > 0) == tags, jnp.ones_like(losses))
        found = TokenSums(*(jnp.sum(each, where=mask) for each in counted))
        return BatchSums({"": found}, found.weight), carry


@dataclass(frozen=True, eq=False)
class TaggerSystem(System):
    """Random texts in batches, and how to train and evaluate on them."""

    name: ClassVar = "tagger"
    Config: ClassVar = TaggerConfig
    presets: ClassVar = (
        TaggerConfig("tagger", epochs=3, model=StackConfig(hidden_size=32, bidirectional=True)),
    )
    has_perplexity: ClassVar = False

    config: TaggerConfig
    vocabulary: Vocabulary
    sha256: str
    data: list[Tagged]
    batches: int = 90  # of 100; the others are held out

    @classmethod
    def read(cls, config: TaggerConfig, kept: Any, vocabulary: Any) -> Self:
        random, shape = np.random.default_rng(config.seed), (config.length, config.batch_size)
        batches = [tagged(random, *shape) for _ in range(100)]
        return cls(config, Vocabulary("char", tuple(TOKENS)), f"seed {config.seed}", batches)

    @classmethod
    def model_of(cls, config: TaggerConfig, tokens: int) -> Tagger:
        return Tagger(config.model)

    def feed(self) -> Callable[[int], Tagged]:
        return lambda step: self.data[step % self.batches]

    def heldout(self) -> Iterator[Tagged]:
        return iter(self.data[self.batches :])


def tagged(random: np.random.Generator, length: int, texts: int) -> Tagged:
    """Draws random texts, and tags the letters next to an equal letter."""
    mask = np.arange(length)[:, None] < random.integers(1, length + 1, texts)
    tokens = np.where(mask, random.integers(1, len(TOKENS), mask.shape, np.int32), 0)
    same = np.pad(tokens[1:] == tokens[:-1], ((1, 1), (0, 0)))
    return Tagged(tokens, (same[1:] | same[:-1]) & mask, mask)


systems.SYSTEMS += (TaggerSystem,)  # registers the system


def main(text: str = "abbacccab") -> str:
    """Trains the tagger with train.py's command, loads it, and tags a text."""
    with TemporaryDirectory() as folder:
        train_command(["tagger", "--run-dir", folder, "--learning-rate", "1e-2"])
        model, params, vocabulary, _ = lstm_jax.load(folder)
    logits = model.logits(params, vocabulary.encode(text)[:, None])
    marks = "".join("^" if logit > 0 else " " for logit in logits[:, 0])
    print(f"{text}\n{marks}")
    return marks


if __name__ == "__main__":
    main()

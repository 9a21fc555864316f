"""The command `convert`: weights from a run or a file into a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lstm_jax.cli.arguments import parse
from lstm_jax.interop.files import (
    SAFETENSORS_SUFFIX,
    load_arrays,
    require_target,
    save_safetensors,
)
from lstm_jax.interop.plain import (
    language_model_from_plain,
    language_model_to_plain,
    layers_from_plain,
    layers_to_plain,
)
from lstm_jax.interop.pytorch import (
    LanguageModelNames,
    language_model_from_pytorch,
    language_model_to_pytorch,
    layers_from_pytorch,
    layers_to_pytorch,
    unwrapped_name,
)
from lstm_jax.models import LanguageModel, LanguageModelParams

Weights = LanguageModelParams | tuple[Any, ...]
"""A whole language model, or the layers of a stack alone."""


@dataclass(frozen=True)
class ConvertCommand:
    """Write the weights of a run or a file to a safetensors file, in PyTorch's names or our own.

    Attributes:
        source: a folder that train.py made; or a .safetensors, .pt or .pth file in either layout.
        target: the .safetensors file to write.
        to: "pytorch": encoder.weight, rnn.*, decoder.*, or of layers alone weight_ih_l0 and so on;
            "plain": embedding, layers/0/w_x, output/w and so on. By default the other layout than
            the source's, and "pytorch" of a run.
        step: which checkpoint of a run: a step, the newest good one, or the best on held-out data.
        prefix: take only the layers of a PyTorch file whose names begin so, for example "rnn.".
        encoder: what the PyTorch model calls its embedding.
        rnn: what it calls its recurrent layers.
        decoder: what it calls its output layer.
        identity_encoder: where tokens enter one-hot, write the identity as encoder.weight.
        overwrite: replace the target if it is there.
    """

    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]
    to: Literal["pytorch", "plain"] | None = None
    step: int | Literal["newest", "best"] = "newest"
    prefix: str | None = None
    encoder: str = "encoder"
    rnn: str = "rnn"
    decoder: str = "decoder"
    identity_encoder: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.target.suffix != SAFETENSORS_SUFFIX:
            raise ValueError(f"the target is {self.target}; its name must end with .safetensors")
        require_target(self.target, overwrite=self.overwrite)
        if isinstance(self.step, int) and self.step < 0:
            raise ValueError(f"step is {self.step}; it must be 0 or above")

    @property
    def names(self) -> LanguageModelNames:
        """What the PyTorch model calls its modules."""
        return LanguageModelNames(self.encoder, self.rnn, self.decoder)


def convert_command(arguments: Sequence[str], prog: str = "convert") -> int:
    """Runs `convert`; raises ValueError for whatever the user can mend."""
    command = parse(ConvertCommand, None, arguments, prog)
    weights, layout = _read(command)
    to = command.to or ("plain" if layout == "pytorch" else "pytorch")
    arrays = _to_plain(weights) if to == "plain" else _to_pytorch(command, weights)
    # Other programs ask this entry for the framework whose layout it is.
    metadata = {"format": "pt" if to == "pytorch" else "lstm_jax"}
    save_safetensors(command.target, arrays, metadata=metadata)
    numbers = sum(array.size for array in arrays.values())
    print(f"wrote {len(arrays)} arrays, {numbers:,} numbers, in the {to} layout: {command.target}")
    return 0


def _read(command: ConvertCommand) -> tuple[Weights, Literal["pytorch", "plain", "run"]]:
    if command.source.is_dir():
        from lstm_jax.training.run import load

        if command.prefix is not None:
            raise ValueError("a run has no prefix; leave out --prefix")
        return load(command.source, step=command.step, kind=LanguageModel).params, "run"
    if command.step != "newest":
        raise ValueError(f"{command.source} is a file, which has no steps; leave out --step")
    arrays = load_arrays(command.source)
    if any(name.startswith("layers/") for name in arrays):
        if command.prefix is not None:
            raise ValueError(f"{command.source} has plain names, no prefix; leave out --prefix")
        return _from_plain(arrays), "plain"
    return _from_pytorch(command, arrays), "pytorch"


def _from_plain(arrays: Mapping[str, Any]) -> Weights:
    if "output/b" in arrays:
        return language_model_from_plain(arrays)
    return layers_from_plain(arrays)


def _from_pytorch(command: ConvertCommand, arrays: Mapping[str, Any]) -> Weights:
    if command.prefix is not None:
        return layers_from_pytorch(arrays, command.prefix)
    decoder = f"{unwrapped_name(command.decoder)}."
    if any(unwrapped_name(name).startswith(decoder) for name in arrays):
        return language_model_from_pytorch(arrays, names=command.names)[1]
    return layers_from_pytorch(arrays)


def _to_plain(weights: Weights) -> dict[str, Any]:
    if isinstance(weights, LanguageModelParams):
        return dict(language_model_to_plain(weights))
    return dict(layers_to_plain(weights))


def _to_pytorch(command: ConvertCommand, weights: Weights) -> dict[str, Any]:
    if not isinstance(weights, LanguageModelParams):
        return dict(layers_to_pytorch(weights))
    return dict(
        language_model_to_pytorch(
            weights, names=command.names, identity_encoder=command.identity_encoder
        )
    )

"""The `convert` command: write the weights of a run or a file as safetensors."""

from typing import Any

from lstm_jax.cli.options import ConvertCommand
from lstm_jax.interop import plain, pytorch
from lstm_jax.interop.files import (
    SAFETENSORS_SUFFIX,
    load_arrays,
    require_target,
    save_safetensors,
)
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.stack import StackConfig
from lstm_jax.training.run import load

Weights = LanguageModelParams | tuple[Any, ...]
"""A whole language model, or only the layers of a stack."""


def run(command: ConvertCommand) -> int:
    """Write the file; raises ValueError for user errors."""
    if command.target.suffix != SAFETENSORS_SUFFIX:
        raise ValueError(f"the target is {command.target}; its name must end with .safetensors")
    require_target(command.target, overwrite=command.overwrite)
    weights, is_pytorch, config = _read(command)
    to = command.to or ("plain" if is_pytorch else "pytorch")
    arrays = _named(command, weights, to)
    # Other programs read the framework of the layout from this entry.
    metadata = {"format": "pt" if to == "pytorch" else "lstm_jax"}
    save_safetensors(command.target, arrays, metadata=metadata)
    numbers = sum(array.size for array in arrays.values())
    print(f"wrote {len(arrays)} arrays, {numbers:,} numbers, in the {to} layout: {command.target}")
    if config is not None and (untold := _untold(config)):
        print(f"the file has weights alone; tell what runs them of the run's {', '.join(untold)}")
    return 0


def _untold(config: StackConfig) -> list[str]:
    """Settings that change what a model computes, of which no layout has a trace."""
    told = dict(config.step_options)
    if config.recurrent.option == "hold":
        names = ("recurrent_dropout_kind", "recurrent_dropout", "zoneout_cell")
        told |= {name: getattr(config, name) for name in names}
    return [f"{name} {value}" for name, value in told.items() if value is not None]


def _read(command: ConvertCommand) -> tuple[Weights, bool, StackConfig | None]:
    """The weights, whether they had PyTorch's names, and the config of a run."""
    source = command.source
    if source.is_dir():
        if command.prefix is not None:
            raise ValueError("a run has no prefix; leave out --prefix")
        loaded = load(source, step=command.step, kind=LanguageModel)
        return loaded.params, False, loaded.model.config
    if command.step != "newest":
        raise ValueError(f"{source} is a file, which has no steps; leave out --step")
    arrays = load_arrays(source)
    if any(name.startswith("layers/") for name in arrays):
        if command.prefix is not None:
            raise ValueError(f"{source} has plain names, no prefix; leave out --prefix")
        if "output/b" in arrays:
            return plain.language_model_from_plain(arrays), False, None
        return plain.layers_from_plain(arrays), False, None
    if command.prefix is not None:
        return pytorch.layers_from_pytorch(arrays, command.prefix), True, None
    decoder = f"{pytorch.unwrapped_name(command.decoder)}."
    if any(pytorch.unwrapped_name(name).startswith(decoder) for name in arrays):
        return pytorch.language_model_from_pytorch(arrays, names=_names(command))[1], True, None
    return pytorch.layers_from_pytorch(arrays), True, None


def _named(command: ConvertCommand, weights: Weights, to: str) -> dict[str, Any]:
    if not isinstance(weights, LanguageModelParams):
        layers_to = plain.layers_to_plain if to == "plain" else pytorch.layers_to_pytorch
        return dict(layers_to(weights))
    if to == "plain":
        return dict(plain.language_model_to_plain(weights))
    names, identity = _names(command), command.identity_encoder
    return dict(pytorch.language_model_to_pytorch(weights, names=names, identity_encoder=identity))


def _names(command: ConvertCommand) -> pytorch.LanguageModelNames:
    return pytorch.LanguageModelNames(command.encoder, command.rnn, command.decoder)

"""PyTorch: `nn.LSTM` or `nn.GRU`, whose loops are its own native code (oneDNN, cuDNN)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.implementation import Training
from bench.peers.pytorch_parts import (
    adam,
    autocast,
    input_mask,
    load_arrays,
    on_device,
    ready_device,
    recurrent_state,
    synchronize,
)
from bench.peers.pytorch_reviews import PyTorchReviews
from bench.shapes import BATCHES, AnyParams, AnySystem, Classification, DType, System
from lstm_jax.classifier import ClassifierParams
from lstm_jax.models import LanguageModelParams, output_layer


class PyTorch:
    """PyTorch as its users run it, with all cores and the fused Adam."""

    name = "pytorch"

    def build(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        """See `Implementation`."""
        device = ready_device()
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            return PyTorchReviews(system, dtype, params, device)
        assert isinstance(params, LanguageModelParams)
        return PyTorchTraining(system, dtype, params, device)


PEER = PyTorch()


class PyTorchTraining:
    """See `Training`."""

    def __init__(
        self, system: System, dtype: DType, params: LanguageModelParams, device: torch.device
    ) -> None:
        self._system, self._dtype, self._device = system, dtype, device
        self._modules = make_modules(system).to(device)
        load(self._modules, params)
        self._one_hot = None
        if system.embedding_size is None:
            # A look-up in the unit matrix: half the time of `one_hot(...)` and its cast.
            self._one_hot = torch.eye(system.vocabulary_size, device=device)
        self._optimizer, optimizer_name = adam(self._modules.parameters(), system.learning_rate)
        self._batches = [
            tuple(on_device(ids, device) for ids in system.batch(index)) for index in range(BATCHES)
        ]
        self._index = 0
        self._carry: Any = None
        self.settings: Mapping[str, str] = {
            "optimizer": optimizer_name,
            "threads": str(torch.get_num_threads()),
            "input": "one-hot" if system.embedding_size is None else "nn.Embedding",
            "autocast": str(dtype == "bfloat16"),
        }

    @property
    def parameters(self) -> int:
        """See `Training`."""
        return sum(p.numel() for p in self._modules.parameters() if p.requires_grad)

    @property
    def parameters_beyond_ours(self) -> int:
        """Its second bias; a GRU of ours has the part of it that is not redundant."""
        gates = 4 if self._system.cell == "lstm" else 2
        return self._system.layers * gates * self._system.hidden_size

    def loss(self) -> float:
        """See `Training`."""
        self._modules.eval()
        with torch.no_grad():
            loss, _ = self._forward(self._batches[0], None)
        self._modules.train()
        return float(loss)

    def step(self) -> None:
        """See `Training`."""
        carry = None if self._index == 0 or not self._system.carried else self._carry
        self._optimizer.zero_grad(set_to_none=True)
        loss, carry = self._forward(self._batches[self._index], carry)
        loss.backward()
        nn.utils.clip_grad_norm_(self._modules.parameters(), self._system.clip_norm, foreach=True)
        self._optimizer.step()
        self._carry = _detached(carry)
        self._index = (self._index + 1) % BATCHES
        synchronize(self._device)

    def _forward(self, batch: Any, carry: Any) -> tuple[Any, Any]:
        (inputs, targets), modules = batch, self._modules
        with autocast(self._device, self._dtype):
            if self._one_hot is None:
                xs = modules["embedding"](inputs)
            else:
                xs = functional.embedding(inputs, self._one_hot)
            if self._system.dropout_place == "inputs":
                xs = input_mask(xs, self._system.dropout, modules.training)
            hs, carry = modules["recurrent"](xs, carry)
            logits = modules["output"](modules["dropout"](hs))
        flat = logits.flatten(0, 1).float()
        return functional.cross_entropy(flat, targets.flatten()), carry


def load(modules: Any, params: LanguageModelParams) -> None:
    """Gives what `make_modules` made our weights."""
    output = output_layer(params)
    named: dict[str, Any] = {"output.weight": output.w.T, "output.bias": output.b}
    if params.embedding is not None:
        named["embedding.weight"] = params.embedding
    for index, layer in enumerate(params.layers):
        for name, array in recurrent_state(layer, index).items():
            named[f"recurrent.{name}"] = array
    load_arrays(modules, named)


def make_modules(system: System) -> Any:
    """The system's layers by name: recurrent, dropout, output, and embedding if it has one.

    Raises:
        ValueError: dropout on the inputs of more than one layer, which `nn.LSTM` has not.
    """
    if system.dropout_place == "inputs" and system.layers > 1:
        raise ValueError("dropout on the inputs of several layers")
    recurrent = nn.LSTM if system.cell == "lstm" else nn.GRU
    size, above = system.hidden_size, system.output_dropout
    if system.dropout_place == "outputs":
        above = system.dropout
    between = system.dropout if system.layers > 1 else 0.0
    modules: dict[str, nn.Module] = {
        "recurrent": recurrent(system.input_size, size, system.layers, dropout=between),
        "dropout": nn.Dropout(above),
        "output": nn.Linear(size, system.vocabulary_size),
    }
    if system.embedding_size is not None:
        modules["embedding"] = nn.Embedding(system.vocabulary_size, system.embedding_size)
    if system.tied:
        modules["output"].weight = modules["embedding"].weight
    return nn.ModuleDict(modules)


def _detached(carry: Any) -> Any:
    if isinstance(carry, tuple):
        return tuple(part.detach() for part in carry)
    return carry.detach()

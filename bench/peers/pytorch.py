"""PyTorch: `nn.LSTM` or `nn.GRU`, whose loops are its own native code (oneDNN, cuDNN)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.environment import cores
from bench.implementation import DType
from bench.shapes import BATCHES, System
from lstm_jax.cells import GRUParams, LSTMParams
from lstm_jax.models import LanguageModelParams, output_layer


class PyTorch:
    """PyTorch as its users run it, with all cores and the fused Adam."""

    name = "pytorch"

    def build(self, system: System, dtype: DType, params: LanguageModelParams) -> PyTorchTraining:
        """See `Implementation`."""
        device = same_device()
        torch.set_num_threads(cores())
        return PyTorchTraining(system, dtype, params, device)


PEER = PyTorch()


def same_device() -> torch.device:
    """PyTorch's name of the device that jax runs on.

    Raises:
        ValueError: PyTorch cannot run there.
    """
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise ValueError("jax runs on a GPU here, and this PyTorch has no CUDA")
    # Full float32 on a GPU, as ours: cuDNN would take TF32 unasked.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if on_gpu else "cpu")


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
        self._optimizer, optimizer_name = self._adam()
        self._batches = [self._placed(system, index) for index in range(BATCHES)]
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
            loss, _ = self._forward(*self._batches[0], None)
        self._modules.train()
        return float(loss)

    def step(self) -> None:
        """See `Training`."""
        carry = None if self._index == 0 else self._carry
        inputs, targets = self._batches[self._index]
        self._optimizer.zero_grad(set_to_none=True)
        loss, carry = self._forward(inputs, targets, carry)
        loss.backward()
        nn.utils.clip_grad_norm_(self._modules.parameters(), self._system.clip_norm, foreach=True)
        self._optimizer.step()
        self._carry = _detached(carry)
        self._index = (self._index + 1) % BATCHES
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _forward(self, inputs: Any, targets: Any, carry: Any) -> tuple[Any, Any]:
        modules = self._modules
        with self._autocast():
            if self._one_hot is None:
                xs = modules["embedding"](inputs)
            else:
                xs = functional.embedding(inputs, self._one_hot)
            hs, carry = modules["recurrent"](xs, carry)
            logits = modules["output"](modules["dropout"](hs))
        flat = logits.flatten(0, 1).float()
        return functional.cross_entropy(flat, targets.flatten()), carry

    def _autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"
        )
        return context

    def _adam(self) -> tuple[Any, str]:
        parameters, rate = list(self._modules.parameters()), self._system.learning_rate
        try:
            return torch.optim.Adam(parameters, lr=rate, fused=True), "Adam(fused=True)"
        except RuntimeError:
            return torch.optim.Adam(parameters, lr=rate, foreach=True), "Adam(foreach=True)"

    def _placed(self, system: System, index: int) -> tuple[Any, Any]:
        inputs, targets = system.batch(index)
        return tuple(  # type: ignore[return-value]
            torch.from_numpy(ids.astype(np.int64)).to(self._device) for ids in (inputs, targets)
        )


def load(modules: Any, params: LanguageModelParams) -> None:
    """Gives what `make_modules` made our weights."""
    output = output_layer(params)
    named: dict[str, Any] = {"output.weight": output.w.T, "output.bias": output.b}
    if params.embedding is not None:
        named["embedding.weight"] = params.embedding
    for index, layer in enumerate(params.layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for name, array in zip(names, _in_pytorch_form(layer), strict=True):
            named[f"recurrent.{name}_l{index}"] = array
    state = {name: torch.from_numpy(np.array(array)) for name, array in named.items()}
    modules.load_state_dict(state)


def make_modules(system: System) -> Any:
    """The system's layers by name: recurrent, dropout, output, and embedding if it has one."""
    recurrent = nn.LSTM if system.cell == "lstm" else nn.GRU
    between = system.dropout if system.layers > 1 else 0.0
    size = system.hidden_size
    modules: dict[str, nn.Module] = {
        "recurrent": recurrent(system.input_size, size, system.layers, dropout=between),
        "dropout": nn.Dropout(system.dropout),
        "output": nn.Linear(size, system.vocabulary_size),
    }
    if system.embedding_size is not None:
        modules["embedding"] = nn.Embedding(system.vocabulary_size, system.embedding_size)
    return nn.ModuleDict(modules)


def _in_pytorch_form(layer: LSTMParams | GRUParams) -> tuple[np.ndarray[Any, Any], ...]:
    """`weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`; the order of the gates is the same."""
    b = np.asarray(layer.b)
    b_hh = np.zeros_like(b)
    if isinstance(layer, GRUParams):
        assert layer.b_hn is not None
        b_hh[-layer.b_hn.size :] = layer.b_hn
    return np.asarray(layer.w_x).T, np.asarray(layer.w_h).T, b, b_hh


def _detached(carry: Any) -> Any:
    if isinstance(carry, tuple):
        return tuple(part.detach() for part in carry)
    return carry.detach()

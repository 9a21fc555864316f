"""PyTorch's classifier of texts: word vectors, `nn.LSTM` on `nn.LSTM`, a ReLU layer, a logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.peers.pytorch_parts import (
    adam,
    autocast,
    input_mask,
    load_arrays,
    on_device,
    recurrent_state,
    synchronize,
)
from bench.shapes import BATCHES, Classification, DType
from lstm_jax.classifier import ClassifierParams


class PyTorchReviews:
    """See `Training`."""

    def __init__(
        self, system: Classification, dtype: DType, params: ClassifierParams, device: torch.device
    ) -> None:
        self._system, self._dtype, self._device = system, dtype, device
        self._modules = _modules(system, params).to(device)
        self._vectors = torch.from_numpy(system.vectors()).to(device)
        self._is_missing = (self._vectors == 0).all(1, keepdim=True)
        self._optimizer, optimizer_name = adam(self._modules.parameters(), system.learning_rate)
        self._batches = [
            tuple(on_device(ids, device) for ids in system.batch(index)) for index in range(BATCHES)
        ]
        self._index = 0
        self.settings: Mapping[str, str] = {
            "optimizer": optimizer_name,
            "threads": str(torch.get_num_threads()),
            "autocast": str(dtype == "bfloat16"),
        }

    @property
    def parameters(self) -> int:
        """See `Training`."""
        return sum(p.numel() for p in self._modules.parameters())

    @property
    def parameters_beyond_ours(self) -> int:
        """Its second bias."""
        return self._system.layers * 4 * self._system.hidden_size

    def loss(self) -> float:
        """See `Training`."""
        self._modules.eval()
        with torch.no_grad():
            loss = self._forward(self._batches[0])
        self._modules.train()
        return float(loss)

    def step(self) -> None:
        """See `Training`."""
        self._optimizer.zero_grad(set_to_none=True)
        self._forward(self._batches[self._index]).backward()
        self._optimizer.step()
        self._index = (self._index + 1) % BATCHES
        synchronize(self._device)

    def _forward(self, batch: Any) -> Any:
        (words, labels), modules, system = batch, self._modules, self._system
        with autocast(self._device, self._dtype):
            table = torch.where(self._is_missing, modules["learnt"].weight, self._vectors)
            xs = functional.embedding(words, table)
            if system.word_dropout and modules.training:
                xs = xs * (torch.rand_like(xs[..., :1]) >= system.word_dropout)
            for layer in modules["layers"]:
                xs, (h, _) = layer(input_mask(xs, system.dropout, modules.training))
            features = modules["dropout"](functional.relu(modules["dense"](h[0])))
            logits = modules["output"](features)[:, 0]
        return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


def _modules(system: Classification, params: ClassifierParams) -> Any:
    size, dense = system.hidden_size, system.dense_size
    inputs = [system.embedding_size] + [size] * (system.layers - 1)
    modules = nn.ModuleDict(
        {
            "learnt": nn.Embedding(system.vocabulary_size, system.embedding_size),
            "layers": nn.ModuleList(nn.LSTM(width, size) for width in inputs),
            "dense": nn.Linear(size, dense),
            "output": nn.Linear(dense, 1),
            "dropout": nn.Dropout(system.dense_dropout),
        }
    )
    assert params.dense is not None
    arrays: dict[str, Any] = {"learnt.weight": params.embedding}
    for name, affine in (("dense", params.dense), ("output", params.output)):
        arrays |= {f"{name}.weight": affine.w.T, f"{name}.bias": affine.b}
    for index, layer in enumerate(params.layers):
        arrays |= {f"layers.{index}.{k}": array for k, array in recurrent_state(layer).items()}
    load_arrays(modules, arrays)
    return modules

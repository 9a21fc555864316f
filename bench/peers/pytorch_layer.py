"""PyTorch's bare `nn.LSTM` or `nn.GRU`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.peers.pytorch_parts import (
    autocast,
    load_arrays,
    ready_device,
    recurrent_state,
    synchronize,
)
from bench.shapes import DType, LayerShape, LayerWork


class PyTorchLayer:
    """PyTorch as its users run it, with all cores."""

    name = "pytorch"

    def build(self, shape: LayerShape, dtype: DType, work: LayerWork) -> PyTorchLayerPass:
        """See `LayerImplementation`."""
        return PyTorchLayerPass(shape, dtype, work, ready_device())


PEER = PyTorchLayer()


class PyTorchLayerPass:
    """See `LayerPass`."""

    def __init__(
        self, shape: LayerShape, dtype: DType, work: LayerWork, device: torch.device
    ) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        kind = nn.LSTM if shape.cell == "lstm" else nn.GRU
        self._module = kind(shape.input_size, shape.hidden_size).to(device)
        load_arrays(self._module, recurrent_state(work.params))

        def placed(array: np.ndarray[Any, Any]) -> Any:
            return torch.from_numpy(np.array(array)).to(device).requires_grad_()

        self._xs, self._dys = placed(work.xs), torch.from_numpy(work.dys).to(device)
        self._carry = tuple(placed(part[None]) for part in work.carry)
        self.settings: Mapping[str, str] = {
            "threads": str(torch.get_num_threads()),
            "autocast": str(dtype == "bfloat16"),
        }

    def run(self) -> None:
        """See `LayerPass`."""
        self._gradients()

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """See `LayerPass`."""
        arrays = [each.float().cpu().numpy() for each in self._gradients()]
        (xs, *carry), (w_x, w_h, b, b_hh) = arrays[:-4], arrays[-4:]
        found = {"xs": xs, "w_x": w_x.T, "w_h": w_h.T, "b": b}
        found |= {name: part[0] for name, part in zip("hc", carry, strict=False)}
        if self._shape.cell == "gru":
            found["b_hn"] = b_hh[-self._shape.hidden_size :]
        return found

    def _gradients(self) -> tuple[Any, ...]:
        carry = self._carry if self._shape.cell == "lstm" else self._carry[0]
        with autocast(self._device, self._dtype):
            ys, _ = self._module(self._xs, carry)
        inputs = (self._xs, *self._carry, *self._module.parameters())
        found: tuple[Any, ...] = torch.autograd.grad(ys, inputs, self._dys.to(ys.dtype))
        synchronize(self._device)
        return found

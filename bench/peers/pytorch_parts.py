"""What every use of PyTorch here shares: its device, its dtypes, its Adam, its form of weights."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import torch

from bench.environment import cores
from bench.shapes import DType
from lstm_jax.cells import GRUParams, LSTMParams


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


def ready_device() -> torch.device:
    """`same_device`, with all cores at work where that is the CPU."""
    device = same_device()
    torch.set_num_threads(cores())
    return device


def synchronize(device: torch.device) -> None:
    """Waits until all is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def autocast(device: torch.device, dtype: DType) -> AbstractContextManager[Any]:
    """Products in bfloat16 where that is asked for."""
    context: AbstractContextManager[Any] = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"
    )
    return context


def adam(parameters: Iterable[Any], rate: float) -> tuple[Any, str]:
    """The fastest of its Adams that this build has, and its name."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, lr=rate, fused=True), "Adam(fused=True)"
    except RuntimeError:
        return torch.optim.Adam(parameters, lr=rate, foreach=True), "Adam(foreach=True)"


def recurrent_state(layer: LSTMParams | GRUParams, index: int = 0) -> dict[str, Any]:
    """One layer's weights by PyTorch's names; the order of the gates is the same."""
    b = np.asarray(layer.b)
    b_hh = np.zeros_like(b)
    if isinstance(layer, GRUParams):
        assert layer.b_hn is not None
        b_hh[-layer.b_hn.size :] = layer.b_hn
    arrays = (np.asarray(layer.w_x).T, np.asarray(layer.w_h).T, b, b_hh)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {f"{name}_l{index}": array for name, array in zip(names, arrays, strict=True)}


def load_arrays(modules: Any, arrays: dict[str, Any]) -> None:
    """Gives modules the weights of these names."""
    modules.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    )


def input_mask(xs: Any, rate: float, training: bool) -> Any:
    """Dropout of features, the same ones at all times of a sequence."""
    if not (rate and training):
        return xs
    return xs * torch.nn.functional.dropout(torch.ones_like(xs[:1]), rate)


def on_device(array: np.ndarray[Any, Any], device: torch.device) -> Any:
    """Integers as PyTorch indexes with them, anything else as it is."""
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int64)
    return torch.from_numpy(array).to(device)

"""PyTorch: `nn.LSTM` or `nn.GRU`, whose loops are its own native code (oneDNN, cuDNN)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.environment import cores
from bench.implementation import Implementation
from bench.shapes import (
    BATCHES,
    AnyParams,
    AnySystem,
    Classification,
    DType,
    Job,
    LayerShape,
    LayerWork,
    System,
)
from lstm_jax.cells import GRUParams, LSTMParams
from lstm_jax.classifier import ClassifierParams
from lstm_jax.models import LanguageModelParams, output_layer

Forward = Callable[[Any, Any], tuple[Any, Any]]


class Peer(Implementation):
    """PyTorch as its users run it, on the device that jax runs on.

    Args:
        compiled: what is differentiated goes through `torch.compile`.
        threads: on a CPU; all cores where it is None.
        onednn: whether oneDNN runs the layers on a CPU.
    """

    def __init__(
        self, compiled: bool = False, threads: int | None = None, onednn: bool = True
    ) -> None:
        on_gpu = jax.default_backend() == "gpu"
        if on_gpu and not torch.cuda.is_available():
            raise ValueError("jax runs on a GPU here, and this PyTorch has no CUDA")
        # Full float32 on a GPU, as ours: cuDNN would take TF32 unasked.
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device("cuda" if on_gpu else "cpu")
        torch.set_num_threads(threads or cores())
        torch.backends.mkldnn.enabled = onednn  # type: ignore[assignment]
        self._compile: Callable[[Any], Any] = torch.compile if compiled else lambda run: run

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> PyTorchTraining:
        gates = 4  # of the second bias; a GRU of ours has the part of it that is not redundant
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            modules = _reviews_modules(system, params).to(self._device)
            forward = _reviews_forward(system, modules, self._device)
        else:
            assert isinstance(params, LanguageModelParams)
            modules = _language_modules(system, params).to(self._device)
            forward = _language_forward(system, modules, self._device)
            gates = 4 if system.cell == "lstm" else 2
        beyond = gates * system.layers * system.hidden_size
        return PyTorchTraining(system, dtype, modules, self._compile(forward), beyond)

    def layer(self, shape: LayerShape, dtype: DType, work: LayerWork) -> PyTorchLayerPass:
        return PyTorchLayerPass(shape, dtype, work, self._compile, self._device)

    def sampling(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> PyTorchSampling:
        return PyTorchSampling(system, dtype, params, job, self._device)


class PyTorchTraining:
    """See `Training`; `beyond` is how many parameters it has more than ours."""

    def __init__(
        self, system: AnySystem, dtype: DType, modules: Any, forward: Forward, beyond: int
    ) -> None:
        self.parameters = sum(p.numel() for p in modules.parameters()) - beyond
        self._modules, self._forward, self._dtype = modules, forward, dtype
        self._device = next(modules.parameters()).device
        self._clip = None if isinstance(system, Classification) else system.clip_norm
        self._carried = isinstance(system, System) and system.carried
        self._optimizer, optimizer_name = _adam(modules.parameters(), system.learning_rate)
        self._batches = [
            tuple(_on_device(ids, self._device) for ids in system.batch(index))
            for index in range(BATCHES)
        ]
        self._index, self._carry = 0, None
        self.settings = _settings(dtype) | {
            "optimizer": optimizer_name,
            "input": "one-hot" if system.embedding_size is None else "nn.Embedding",
        }

    def loss(self) -> float:
        self._modules.eval()
        with torch.no_grad(), _autocast(self._device, self._dtype):
            loss, _ = self._forward(self._batches[0], None)
        self._modules.train()
        return float(loss)

    def step(self) -> None:
        carry = None if self._index == 0 or not self._carried else self._carry
        self._optimizer.zero_grad(set_to_none=True)
        with _autocast(self._device, self._dtype):
            loss, carry = self._forward(self._batches[self._index], carry)
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._modules.parameters(), self._clip, foreach=True)
        self._optimizer.step()
        self._carry = _detached(carry)
        self._index = (self._index + 1) % BATCHES
        _synchronize(self._device)


def _language_forward(system: System, modules: Any, device: torch.device) -> Forward:
    # One-hot tokens as a look-up in the unit matrix: half the time of `one_hot(...)` and its cast.
    table = torch.eye(system.vocabulary_size, device=device)

    def forward(batch: Any, carry: Any) -> tuple[Any, Any]:
        inputs, targets = batch
        if system.embedding_size is None:
            xs = functional.embedding(inputs, table)
        else:
            xs = modules["embedding"](inputs)
        if system.dropout_place == "inputs":
            xs = _input_mask(xs, system.dropout, modules.training)
        hs, carry = modules["recurrent"](xs, carry)
        logits = modules["output"](modules["dropout"](hs))
        flat = logits.flatten(0, 1).float()
        return functional.cross_entropy(flat, targets.flatten()), carry

    return forward


def _language_modules(system: System, params: LanguageModelParams) -> Any:
    """The system's layers by name, with our weights; ValueError where `nn.LSTM` has no such."""
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
    output = output_layer(params)
    arrays: dict[str, Any] = {"output.weight": output.w.T, "output.bias": output.b}
    if params.embedding is not None:
        arrays["embedding.weight"] = params.embedding
    for index, layer in enumerate(params.layers):
        arrays |= {f"recurrent.{k}": each for k, each in _recurrent_state(layer, index).items()}
    return _with_arrays(nn.ModuleDict(modules), arrays)


def _reviews_forward(system: Classification, modules: Any, device: torch.device) -> Forward:
    vectors = torch.from_numpy(system.vectors()).to(device)
    is_missing = (vectors == 0).all(1, keepdim=True)

    def forward(batch: Any, _: Any) -> tuple[Any, Any]:
        words, labels = batch
        table = torch.where(is_missing, modules["learnt"].weight, vectors)
        xs = functional.embedding(words, table)
        h: Any = None
        if system.word_dropout and modules.training:
            xs = xs * (torch.rand_like(xs[..., :1]) >= system.word_dropout)
        for layer in modules["layers"]:
            xs, (h, _) = layer(_input_mask(xs, system.dropout, modules.training))
        features = modules["dropout"](functional.relu(modules["dense"](h[0])))
        logits = modules["output"](features)[:, 0].float()
        return functional.binary_cross_entropy_with_logits(logits, labels.float()), None

    return forward


def _reviews_modules(system: Classification, params: ClassifierParams) -> Any:
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
        arrays |= {f"layers.{index}.{k}": array for k, array in _recurrent_state(layer).items()}
    return _with_arrays(modules, arrays)


class PyTorchLayerPass:
    """See `LayerPass`."""

    def __init__(
        self,
        shape: LayerShape,
        dtype: DType,
        work: LayerWork,
        compile: Callable[[Any], Any],
        device: torch.device,
    ) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        kind = nn.LSTM if shape.cell == "lstm" else nn.GRU
        module = kind(shape.input_size, shape.hidden_size)
        self._module = _with_arrays(module, _recurrent_state(work.params)).to(device)
        self._run = compile(self._module)

        def placed(array: np.ndarray[Any, Any]) -> Any:
            return torch.from_numpy(np.array(array)).to(device).requires_grad_()

        self._xs, self._dys = placed(work.xs), torch.from_numpy(work.dys).to(device)
        self._carry = tuple(placed(part[None]) for part in work.carry)
        self.settings = _settings(dtype)

    def run(self) -> None:
        self._gradients()

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        arrays = [each.float().cpu().numpy() for each in self._gradients()]
        (xs, *carry), (w_x, w_h, b, b_hh) = arrays[:-4], arrays[-4:]
        found = {"xs": xs, "w_x": w_x.T, "w_h": w_h.T, "b": b}
        found |= {name: part[0] for name, part in zip("hc", carry, strict=False)}
        if self._shape.cell == "gru":
            found["b_hn"] = b_hh[-self._shape.hidden_size :]
        return found

    def _gradients(self) -> tuple[Any, ...]:
        carry = self._carry if self._shape.cell == "lstm" else self._carry[0]
        with _autocast(self._device, self._dtype):
            ys, _ = self._run(self._xs, carry)
        inputs = (self._xs, *self._carry, *self._module.parameters())
        found: tuple[Any, ...] = torch.autograd.grad(ys, inputs, self._dys.to(ys.dtype))
        _synchronize(self._device)
        return found


class PyTorchSampling:
    """See `Sampling`: the layers step by step, then top-k, softmax, multinomial."""

    def __init__(
        self,
        system: System,
        dtype: DType,
        params: LanguageModelParams,
        job: Job,
        device: torch.device,
    ) -> None:
        kind = getattr(torch, dtype)
        self._job = job
        self._modules = _language_modules(system, params).to(device, kind).eval()
        if system.embedding_size is None:
            self._embedding = torch.eye(system.vocabulary_size, device=device, dtype=kind)
        else:
            self._embedding = self._modules["embedding"].weight
        self._prompts = _on_device(job.prompts(system), device)
        self.settings: Mapping[str, str] = {
            "loop": "inference_mode, one call of the layers a step",
            "input": "one-hot" if system.embedding_size is None else "embedding",
            "threads": str(torch.get_num_threads()),
            "onednn": str(torch.backends.mkldnn.enabled),
        }

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        with torch.inference_mode():
            tokens, carry = self._prompts, None
            written = []
            for _ in range(self._job.places):
                xs = functional.embedding(tokens, self._embedding)
                hs, carry = self._modules["recurrent"](xs, carry)
                written.append(self._choose(self._modules["output"](hs[-1]).float()))
                tokens = written[-1][None]
            found: np.ndarray[Any, Any] = torch.stack(written).cpu().numpy()
        return found.astype(np.int32)

    def _choose(self, logits: Any) -> Any:
        if self._job.temperature == 0:
            return logits.argmax(-1)
        logits = logits / self._job.temperature
        if not self._job.top_n:
            return torch.multinomial(logits.softmax(-1), 1)[:, 0]
        values, ids = torch.topk(logits, min(self._job.top_n, logits.shape[-1]))
        drawn = torch.multinomial(values.softmax(-1), 1)
        return ids.gather(-1, drawn)[:, 0]


def _settings(dtype: DType) -> dict[str, str]:
    return {"threads": str(torch.get_num_threads()), "autocast": str(dtype == "bfloat16")}


def _synchronize(device: torch.device) -> None:
    """Waits until all is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _autocast(device: torch.device, dtype: DType) -> AbstractContextManager[Any]:
    """Products in bfloat16 where that is asked for."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def _adam(parameters: Iterable[Any], rate: float) -> tuple[Any, str]:
    """The fastest of its Adams that this build has, and its name."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, lr=rate, fused=True), "Adam(fused=True)"
    except RuntimeError:
        return torch.optim.Adam(parameters, lr=rate, foreach=True), "Adam(foreach=True)"


def _recurrent_state(layer: LSTMParams | GRUParams, index: int = 0) -> dict[str, Any]:
    """One layer's weights by PyTorch's names; the order of the gates is the same."""
    b = np.asarray(layer.b)
    b_hh = np.zeros_like(b)
    if isinstance(layer, GRUParams):
        assert layer.b_hn is not None
        b_hh[-layer.b_hn.size :] = layer.b_hn
    arrays = (np.asarray(layer.w_x).T, np.asarray(layer.w_h).T, b, b_hh)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {f"{name}_l{index}": array for name, array in zip(names, arrays, strict=True)}


def _with_arrays(modules: Any, arrays: Mapping[str, Any]) -> Any:
    """The modules, with the weights of these names."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    modules.load_state_dict(tensors)
    return modules


def _input_mask(xs: Any, rate: float, training: bool) -> Any:
    """Dropout of features, the same ones at all times of a sequence."""
    if not (rate and training):
        return xs
    return xs * functional.dropout(torch.ones_like(xs[:1]), rate)


def _on_device(array: np.ndarray[Any, Any], device: torch.device) -> Any:
    """Integers as PyTorch indexes with them."""
    return torch.from_numpy(array.astype(np.int64)).to(device)


def _detached(carry: Any) -> Any:
    if isinstance(carry, tuple):
        return tuple(part.detach() for part in carry)
    return None if carry is None else carry.detach()

"""PyTorch: `nn.LSTM` or `nn.GRU`, whose loops are native code (oneDNN, cuDNN)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench import shapes
from bench.peers import Implementation, LayerPass, Training
from bench.report import cores
from bench.shapes import BATCHES, AnyParams, AnySystem, Classification, DType, System
from bench.workers import Built
from lstm_jax.classifier import ClassifierParams
from lstm_jax.interop.pytorch import (
    LanguageModelNames,
    language_model_to_pytorch,
    layers_to_pytorch,
)
from lstm_jax.models import LanguageModelParams

_NAMES = LanguageModelNames("embedding", "recurrent", "output")

Forward = Callable[[Any, Any], tuple[Any, Any]]


class Peer(Implementation):
    """PyTorch as its users run it, on the device that jax runs on.

    Args:
        compiled: pass the differentiated function through `torch.compile`.
        threads: number of threads on CPU; None means all cores.
        onednn: whether oneDNN runs the layers on CPU.
    """

    def __init__(
        self, compiled: bool = False, threads: int | None = None, onednn: bool = True
    ) -> None:
        on_gpu = jax.default_backend() == "gpu"
        if on_gpu and not torch.cuda.is_available():
            raise ValueError("jax runs on a GPU here, and this PyTorch has no CUDA")
        # Full float32 on GPU, like ours: cuDNN would use TF32 by default.
        torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device("cuda" if on_gpu else "cpu")
        torch.set_num_threads(threads or cores())
        torch.backends.mkldnn.enabled = onednn  # type: ignore[assignment]
        self._compile: Callable[[Any], Any] = torch.compile if compiled else lambda run: run

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        device = self._device
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            modules = _reviews_modules(system, params).to(device)
            forward = self._compile(_reviews_forward(system, modules, device))
        else:
            assert isinstance(params, LanguageModelParams)
            modules = _language_modules(system, params).to(device)
            forward = self._compile(_language_forward(system, modules, device))
        optimizer = torch.optim.Adam(modules.parameters(), lr=system.learning_rate, fused=True)
        batches = [[_on_device(ids, device) for ids in system.batch(i)] for i in range(BATCHES)]
        turns, carry = cycle(enumerate(batches)), None

        def first_loss() -> float:
            modules.eval()
            with torch.no_grad(), _autocast(device, dtype):
                loss, _ = forward(batches[0], None)
            modules.train()
            return float(loss)

        def step() -> None:
            nonlocal carry
            index, batch = next(turns)
            optimizer.zero_grad(set_to_none=True)
            with _autocast(device, dtype):
                loss, after = forward(batch, carry if index and system.carried else None)
            loss.backward()
            if system.clip_norm is not None:
                nn.utils.clip_grad_norm_(modules.parameters(), system.clip_norm, foreach=True)
            optimizer.step()
            carry = jax.tree.map(lambda part: part.detach(), after)
            _synchronize(device)

        # Its second bias; our GRU has the part of it that is not redundant.
        beyond = (2 if system.cell == "gru" else 4) * system.layers * system.hidden_size
        parameters = sum(p.numel() for p in modules.parameters()) - beyond
        settings = {"optimizer": "Adam(fused=True)", **_settings(dtype)}
        settings["input"] = "one-hot" if system.embedding_size is None else "nn.Embedding"
        return Training(step, first_loss, parameters, settings)

    def layer(self, shape: shapes.LayerShape, dtype: DType) -> LayerPass:
        work, is_lstm, device = shape.work(), shape.cell == "lstm", self._device
        kind = nn.LSTM if is_lstm else nn.GRU
        empty = kind(shape.input_size, shape.hidden_size)
        module = _with_arrays(empty, layers_to_pytorch((work.params,))).to(device)
        forward = self._compile(module)

        def placed(array: np.ndarray[Any, Any]) -> Any:
            return torch.from_numpy(np.array(array)).to(device).requires_grad_()

        xs, dys = placed(work.xs), torch.from_numpy(work.dys).to(device)
        carry = tuple(placed(part[None]) for part in work.carry)

        def run() -> tuple[Any, ...]:
            with _autocast(device, dtype):
                ys, _ = forward(xs, carry if is_lstm else carry[0])
            inputs = (xs, *carry, *module.parameters())
            found: tuple[Any, ...] = torch.autograd.grad(ys, inputs, dys.to(ys.dtype))
            _synchronize(device)
            return found

        def gradients() -> dict[str, np.ndarray[Any, Any]]:
            arrays = [each.float().cpu().numpy() for each in run()]
            (of_xs, *of_carry), (w_x, w_h, b, b_hh) = arrays[:-4], arrays[-4:]
            found = {"xs": of_xs, "w_x": w_x.T, "w_h": w_h.T, "b": b}
            found |= {name: part[0] for name, part in zip("hc", of_carry, strict=False)}
            return found if is_lstm else found | {"b_hn": b_hh[-shape.hidden_size :]}

        return LayerPass(run, gradients, _settings(dtype))

    def sampling(
        self, system: System, dtype: DType, params: LanguageModelParams, job: shapes.Job
    ) -> Built:
        """Run the layers step by step, then top-k, softmax, multinomial."""
        kind = getattr(torch, dtype)
        modules = _language_modules(system, params).to(self._device, kind).eval()
        if system.embedding_size is None:
            embedding = torch.eye(system.vocabulary_size, device=self._device, dtype=kind)
        else:
            embedding = modules["embedding"].weight
        prompts = _on_device(job.prompts(system), self._device)

        def write() -> np.ndarray[Any, np.dtype[np.int32]]:
            with torch.inference_mode():
                tokens, carry, written = prompts, None, []
                for _ in range(job.places):
                    hs, carry = modules["recurrent"](functional.embedding(tokens, embedding), carry)
                    written.append(_choose(modules["output"](hs[-1]).float(), job))
                    tokens = written[-1][None]
                found: np.ndarray[Any, Any] = torch.stack(written).cpu().numpy()
            return found.astype(np.int32)

        settings = {
            "loop": "inference_mode, one call of the layers a step",
            "input": "one-hot" if system.embedding_size is None else "embedding",
            "threads": str(torch.get_num_threads()),
            "onednn": str(torch.backends.mkldnn.enabled),
        }
        return Built({"write": write}, settings)


def _language_forward(system: System, modules: Any, device: torch.device) -> Forward:
    # One-hot tokens by look-up in the unit matrix: half the time of `one_hot(...)` and its cast.
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
        logits = modules["output"](modules["dropout"](hs)).flatten(0, 1).float()
        return functional.cross_entropy(logits, targets.flatten()), carry

    return forward


def _language_modules(system: System, params: LanguageModelParams) -> Any:
    """The system's layers by name, with our weights; ValueError if `nn.LSTM` lacks them."""
    if system.dropout_place == "inputs" and system.layers > 1:
        raise ValueError("dropout on the inputs of several layers")
    recurrent = nn.LSTM if system.cell == "lstm" else nn.GRU
    size, at_outputs = system.hidden_size, system.dropout_place == "outputs"
    between = system.dropout if system.layers > 1 else 0.0
    modules: dict[str, nn.Module] = {
        "recurrent": recurrent(system.input_size, size, system.layers, dropout=between),
        "dropout": nn.Dropout(system.dropout if at_outputs else system.output_dropout),
        "output": nn.Linear(size, system.vocabulary_size),
    }
    if system.embedding_size is not None:
        modules["embedding"] = nn.Embedding(system.vocabulary_size, system.embedding_size)
    if system.tied:
        modules["output"].weight = modules["embedding"].weight
    return _with_arrays(nn.ModuleDict(modules), language_model_to_pytorch(params, names=_NAMES))


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
        arrays |= layers_to_pytorch((layer,), f"layers.{index}.")
    return _with_arrays(modules, arrays)


def _choose(logits: Any, job: shapes.Job) -> Any:
    if job.temperature == 0:
        return logits.argmax(-1)
    logits = logits / job.temperature
    if not job.top_n:
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]
    values, ids = torch.topk(logits, min(job.top_n, logits.shape[-1]))
    drawn = torch.multinomial(values.softmax(-1), 1)
    return ids.gather(-1, drawn)[:, 0]


def _settings(dtype: DType) -> dict[str, str]:
    return {"threads": str(torch.get_num_threads()), "autocast": str(dtype == "bfloat16")}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _autocast(device: torch.device, dtype: DType) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def _with_arrays(modules: Any, arrays: Mapping[str, Any]) -> Any:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    modules.load_state_dict(tensors)
    return modules


def _input_mask(xs: Any, rate: float, training: bool) -> Any:
    """Dropout of features, the same ones at all time steps of a sequence."""
    if not (rate and training):
        return xs
    return xs * functional.dropout(torch.ones_like(xs[:1]), rate)


def _on_device(array: np.ndarray[Any, Any], device: torch.device) -> Any:
    return torch.from_numpy(array.astype(np.int64)).to(device)

"""PyTorch: `nn.LSTM` or `nn.GRU`, whose loops are native code (oneDNN, cuDNN)."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench import shapes
from bench.peers import Implementation, LayerPass, Training
from bench.shapes import BATCHES, AnyParams, AnySystem, Classification, DType, StoredDType, System
from bench.workers import Built
from lstm_jax.classifier import ClassifierParams
from lstm_jax.cli.flags import available_cores
from lstm_jax.interop.pytorch import (
    LanguageModelNames,
    language_model_to_pytorch,
    layers_to_pytorch,
)
from lstm_jax.models import LanguageModelParams

_NAMES = LanguageModelNames("embedding", "recurrent", "output")
_RUNS_BEFORE_GRAPH = 3

Forward = Callable[[Any, Any], tuple[Any, Any]]


@dataclass
class Peer(Implementation):
    """PyTorch as its users run it, on the device that jax runs on."""

    compiled: bool = False  # pass the differentiated function through `torch.compile`.
    threads: int | None = None  # number of threads on CPU; None means all cores.
    onednn: bool = True  # whether oneDNN runs the layers on CPU.
    graphed: bool = False  # whether each call, or step, is one CUDA graph.
    stored: str | None = None  # dtype of all of a layer's arrays; None is float32, with autocast.

    def __post_init__(self) -> None:
        on_gpu = jax.default_backend() == "gpu"
        if on_gpu and not torch.cuda.is_available():
            raise ValueError("jax runs on a GPU here, and this PyTorch has no CUDA")
        if self.graphed and not on_gpu:
            raise ValueError("CUDA graphs need a CUDA GPU")
        _allow_tf32(False)  # full float32, like ours: cuDNN would use TF32 by default
        self._device = torch.device("cuda" if on_gpu else "cpu")
        torch.set_num_threads(self.threads or available_cores())
        torch.backends.mkldnn.enabled = self.onednn  # type: ignore[assignment]
        self._compile: Callable[[Any], Any] = torch.compile if self.compiled else lambda run: run

    def _set_precision(self, dtype: DType) -> None:
        if dtype == "bfloat16" and not self.onednn:
            raise ValueError("in bfloat16 a step takes 15 to 90 times as long without oneDNN")
        _allow_tf32(dtype == "tf32")

    def training(self, system: AnySystem, dtype: DType, params: AnyParams) -> Training:
        self._set_precision(dtype)
        device = self._device
        if isinstance(system, Classification):
            assert isinstance(params, ClassifierParams)
            modules = _reviews_modules(system, params).to(device)
            forward = self._compile(_reviews_forward(system, modules, device))
        else:
            assert isinstance(params, LanguageModelParams)
            modules = _language_modules(system, params).to(device)
            forward = self._compile(_language_forward(system, modules, device))
        adam: Any = {"fused": True, "capturable": self.graphed}
        optimizer = torch.optim.Adam(modules.parameters(), lr=system.learning_rate, **adam)
        batches = [[_on_device(ids, device) for ids in system.batch(i)] for i in range(BATCHES)]
        turns, carry = cycle(enumerate(batches)), None

        def first_loss() -> float:
            modules.eval()
            with torch.no_grad(), _autocast(device, dtype):
                loss, _ = forward(batches[0], None)
            modules.train()
            return float(loss)

        def train(batch: Any, carry: Any) -> Any:
            optimizer.zero_grad(set_to_none=True)
            with _autocast(device, dtype, cached=not self.graphed):
                loss, after = forward(batch, carry)
            loss.backward()
            if system.clip_norm is not None:
                nn.utils.clip_grad_norm_(modules.parameters(), system.clip_norm, foreach=True)
            optimizer.step()
            return jax.tree.map(lambda part: part.detach(), after)

        advance, zeros = train, None
        if self.graphed:
            zeros = _zero_carry(system, device)
            weights = [each.detach().clone() for each in modules.parameters()]
            advance = _in_graph(train, batches[0], zeros)
            with torch.no_grad():  # undo that training
                for each, before in zip(modules.parameters(), weights, strict=True):
                    each.copy_(before)
                for moments in optimizer.state.values():
                    jax.tree.map(lambda moment: moment.zero_(), dict(moments))

        def step(times: int = 1) -> None:
            nonlocal carry
            for _ in range(times):
                index, batch = next(turns)
                carry = advance(batch, carry if index and system.carried else zeros)
            _synchronize(device)

        # Its second bias; our GRU has the part of it that is not redundant.
        beyond = (2 if system.cell == "gru" else 4) * system.layers * system.hidden_size
        parameters = sum(p.numel() for p in modules.parameters()) - beyond
        settings = {"optimizer": f"Adam(**{adam})", **_settings(dtype)}
        settings["input"] = "one-hot" if system.embedding_size is None else "nn.Embedding"
        return Training(step, first_loss, parameters, settings)

    def layer(self, shape: shapes.LayerShape, dtype: DType) -> LayerPass:
        self._set_precision(dtype)
        work, is_lstm, device = shape.work(), shape.cell == "lstm", self._device
        kind, stored = nn.LSTM if is_lstm else nn.GRU, getattr(torch, self.stored or "float32")
        empty = kind(shape.input_size, shape.hidden_size, shape.layers)
        module = _with_arrays(empty, layers_to_pytorch(work.layers)).to(device, stored)
        call, mixed = self._compile(module), "float32" if self.stored else dtype

        def placed(array: np.ndarray[Any, Any]) -> Any:
            return torch.from_numpy(np.array(array)).to(device, stored).requires_grad_()

        xs, dys = placed(work.xs), torch.from_numpy(work.dys).to(device, stored)
        carry = tuple(map(placed, map(np.stack, zip(*work.carries, strict=True))))

        def module_outputs() -> Any:
            with _autocast(device, mixed, cached=not self.graphed):
                return call(xs, carry if is_lstm else carry[0])[0]

        def forward() -> Any:
            with torch.no_grad():
                return module_outputs()

        def both() -> tuple[Any, ...]:
            ys = module_outputs()
            inputs = (xs, *carry, *module.parameters())
            return ys, *torch.autograd.grad(ys, inputs, dys.to(ys.dtype))

        ready: Callable[..., Any] = _in_graph if self.graphed else partial
        start, start_forward = ready(both), ready(forward)

        def gradients() -> dict[str, np.ndarray[Any, Any]]:
            ys, of_xs, *others = (each.detach().float().cpu().numpy() for each in run())
            found, of_carry = {"ys": ys, "xs": of_xs}, others[: len(carry)]
            for n in range(shape.layers):
                w_x, w_h, b, b_hh = others[len(carry) + 4 * n :][:4]
                each = {"w_x": w_x.T, "w_h": w_h.T, "b": b}
                each |= {name: part[n] for name, part in zip("hc", of_carry, strict=False)}
                each |= {} if is_lstm else {"b_hn": b_hh[-shape.hidden_size :]}
                found |= {f"[{n}].{k}" if n else k: array for k, array in each.items()}
            return found

        def run(times: int = 1, start: Callable[[], Any] = start) -> Any:
            for _ in range(times):
                found = start()
            _synchronize(device)
            return found

        def outputs() -> np.ndarray[Any, Any]:
            return run_forward().float().cpu().numpy()

        run_forward = partial(run, start=start_forward)
        return LayerPass(run, run_forward, gradients, outputs, _settings(mixed))

    def poison(self, shapes: Iterable[tuple[int, ...]]) -> None:
        _ = [torch.full(shape, torch.nan, device=self._device) for shape in shapes]
        _synchronize(self._device)

    def sampling(
        self, system: System, dtype: StoredDType, params: LanguageModelParams, job: shapes.Job
    ) -> Built:
        """Run the layers step by step, then top-k, softmax, multinomial."""
        kind = getattr(torch, dtype)
        modules = _language_modules(system, params).to(self._device, kind).eval()
        if system.embedding_size is None:
            embedding = torch.eye(system.vocabulary_size, device=self._device, dtype=kind)
        else:
            embedding = modules["embedding"].weight
        prompts = _on_device(job.prompts(system), self._device)

        def absorb(tokens: Any, carry: Any) -> tuple[Any, Any]:
            hs, carry = modules["recurrent"](functional.embedding(tokens, embedding), carry)
            chosen = _choose(modules["output"](hs[-1]).float(), job, self.graphed)
            return chosen[None], carry

        step = absorb
        if self.graphed:
            with torch.inference_mode():
                step = _in_graph(absorb, *absorb(prompts, None))

        def write() -> np.ndarray[Any, np.dtype[np.int32]]:
            with torch.inference_mode():
                tokens, carry = absorb(prompts, None)
                written = [tokens]
                for _ in range(1, job.places):
                    tokens, carry = step(tokens, carry)
                    written.append(tokens.clone() if self.graphed else tokens)
                found: np.ndarray[Any, Any] = torch.cat(written).cpu().numpy()
            return found.astype(np.int32)

        settings = {
            "loop": "a CUDA graph a step" if self.graphed else "one call of the layers a step",
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


def _choose(logits: Any, job: shapes.Job, graphed: bool) -> Any:
    if job.temperature == 0:
        return logits.argmax(-1)
    logits = logits / job.temperature
    if not job.top_n:
        return _draw(logits, graphed)[:, 0]
    values, ids = torch.topk(logits, min(job.top_n, logits.shape[-1]))
    return ids.gather(-1, _draw(values, graphed))[:, 0]


def _draw(logits: Any, graphed: bool) -> Any:
    chances = logits.softmax(-1)
    if not graphed:
        return torch.multinomial(chances, 1)
    # The same without a check on the host, which a CUDA graph cannot contain.
    return (chances / torch.empty_like(chances).exponential_()).argmax(-1, keepdim=True)


def _in_graph(call: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
    """Capture the call as a CUDA graph, to whose inputs those of each call are copied.

    It runs a few times first. The next call overwrites the results.
    """
    held = jax.tree.map(lambda each: each.clone(), inputs)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_RUNS_BEFORE_GRAPH):
            call(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(*held)

    def replay(*given: Any) -> Any:
        jax.tree.map(lambda to, each: to.copy_(each), held, given)
        graph.replay()
        return found

    return replay


def _zero_carry(system: AnySystem, device: torch.device) -> Any:
    if isinstance(system, Classification):
        return None
    zeros = torch.zeros(system.layers, system.batch_size, system.hidden_size, device=device)
    return (zeros, zeros.clone()) if system.cell == "lstm" else zeros


def _settings(dtype: DType) -> dict[str, str]:
    return {"threads": str(torch.get_num_threads()), "autocast": str(dtype == "bfloat16")}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _allow_tf32(allow: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow


def _autocast(
    device: torch.device, dtype: DType, *, cached: bool = True
) -> AbstractContextManager[Any]:
    how: Any = {"enabled": dtype == "bfloat16", "cache_enabled": cached}
    return torch.autocast(device.type, dtype=torch.bfloat16, **how)


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

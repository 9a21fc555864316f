"""PyTorch's plain sampling loop: the layers step by step, then top-k, softmax, multinomial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from bench.environment import cores
from bench.measure import seconds
from bench.peers.pytorch import load, make_modules
from bench.peers.pytorch_parts import same_device
from bench.shapes import DType, Job, System
from lstm_jax.models import LanguageModelParams

_TRIED_PLACES = 16
_TRIED_PROMPT = 100
_TRIES = 3


class Settings(NamedTuple):
    """What may be chosen on a CPU.

    Attributes:
        threads: of PyTorch.
        onednn: whether oneDNN runs the layers; it brings weights into its own form at every call,
            which at small batches takes longer than the step itself.
    """

    threads: int
    onednn: bool


class PyTorchSampler:
    """PyTorch as its users run it, with the fastest of its settings."""

    name = "pytorch"

    def build(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> PyTorchSampling:
        """See `SamplingImplementation`."""
        same_device()
        return PyTorchSampling(system, dtype, params, job, _fastest(system, dtype, job))


PEER = PyTorchSampler()


class PyTorchSampling:
    """See `Sampling`."""

    def __init__(
        self,
        system: System,
        dtype: DType,
        params: LanguageModelParams,
        job: Job,
        chosen: Settings | None,
    ) -> None:
        device, kind = same_device(), getattr(torch, dtype)
        self._job, self._chosen = job, chosen
        modules = make_modules(system)
        load(modules, params)
        self._modules = modules.to(device, kind).eval()
        if system.embedding_size is None:
            # As in training, a look-up in the unit matrix.
            self._embedding = torch.eye(system.vocabulary_size, device=device, dtype=kind)
        else:
            self._embedding = modules["embedding"].weight
        self._prompts = torch.from_numpy(job.prompts(system).astype(np.int64)).to(device)
        self.settings: Mapping[str, str] = {
            "loop": "inference_mode, one call of the layers a step",
            "input": "one-hot" if system.embedding_size is None else "embedding",
        }
        if chosen is not None:
            self.settings |= {name: str(value) for name, value in chosen._asdict().items()}

    def write(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """See `Sampling`."""
        with torch.inference_mode(), _set(self._chosen):
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


@cache
def _fastest(system: System, dtype: DType, job: Job) -> Settings | None:
    """The settings that write a little of it in the least time; None where there is no choice."""
    if same_device().type != "cpu":
        return None
    little = replace(
        job,
        places=min(job.places, _TRIED_PLACES),
        prompt_length=min(job.prompt_length, _TRIED_PROMPT),
    )
    if job.places == 1:  # all of its time goes into the prompt
        little = replace(little, places=1, prompt_length=min(job.prompt_length, 10 * _TRIED_PROMPT))
    params = system.initial_params()
    took = {}
    for threads, onednn in product(sorted({1, cores()}), (True, False)):
        chosen = Settings(threads, onednn)
        sampling = PyTorchSampling(system, dtype, params, little, chosen)
        sampling.write()
        took[chosen] = min(seconds(sampling.write) for _ in range(_TRIES))
    return min(took, key=took.__getitem__)


@contextmanager
def _set(chosen: Settings | None) -> Iterator[None]:
    if chosen is None:
        yield
        return
    before = Settings(torch.get_num_threads(), bool(torch.backends.mkldnn.enabled))
    try:
        _put(chosen)
        yield
    finally:
        _put(before)


def _put(chosen: Settings) -> None:
    if torch.get_num_threads() != chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.backends.mkldnn.enabled = chosen.onednn  # type: ignore[assignment]

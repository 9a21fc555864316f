"""The library itself, through the engine that `sample.py` runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, random

from bench.report import OURS
from bench.shapes import DType, Job, System
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.sampling import FREE, generate, stream, with_weights
from lstm_jax.sampling.loop import power_of_two

Ids = np.ndarray[Any, np.dtype[np.int32]]


class OurSampler:
    """`lstm_jax`, its weights stored in the dtype that is asked for."""

    def __init__(self, name: str = OURS) -> None:
        self.name = name

    def build(
        self, system: System, dtype: DType, params: LanguageModelParams, job: Job
    ) -> OurSampling:
        """See `SamplingImplementation`."""
        return OurSampling(system, dtype, params, job)


class OurSampling:
    """See `Sampling`."""

    settings: Mapping[str, str] = {"call": "generate"}

    def __init__(self, system: System, dtype: DType, params: LanguageModelParams, job: Job) -> None:
        self._model, self._params = stored(system, dtype, params)
        free = np.full((job.places, job.batch), FREE, np.int32)
        self._template = np.concatenate([job.prompts(system), free])
        self._job, self._key = job, random.key(0)

    def write(self) -> Ids:
        """See `Sampling`."""
        texts = generate(
            self._model,
            self._params,
            self._template,
            key=self._key,
            temperature=self._job.temperature,
            top_n=self._job.top_n,
        )
        return texts.tokens[self._job.prompt_length :]

    def write_one(self) -> None:
        """Absorbs the prompts and writes one place, by the code that was compiled for all."""
        job = self._job
        chunks = stream(
            self._model,
            self._params,
            self._template[: job.prompt_length + 1],
            key=self._key,
            places=power_of_two(job.places),  # as `generate` pads them
            temperature=job.temperature,
            top_n=job.top_n,
        )
        for _ in chunks:
            pass


def stored(
    system: System, dtype: DType, params: LanguageModelParams
) -> tuple[LanguageModel, LanguageModelParams]:
    """The model and its weights, stored and multiplied in that dtype."""
    return with_weights(system.model(dtype), params, dtype)


class OurScan:
    """The same model over a whole text at once, as training has it, without a loss or dropout."""

    settings: Mapping[str, str] = {"call": "LanguageModel.hidden"}

    def __init__(
        self, system: System, dtype: DType, params: LanguageModelParams, tokens: Ids
    ) -> None:
        self._model, self._params = stored(system, dtype, params)
        self._tokens = jax.device_put(tokens)

    def run(self) -> None:
        """From a zero carry to the last token's output."""
        jax.block_until_ready(_last_output(self._model, self._params, self._tokens))


@partial(jax.jit, static_argnums=0)
def _last_output(
    model: LanguageModel, params: LanguageModelParams, tokens_TB: Array
) -> tuple[Any, Array]:
    carry, hs_TBH = model.hidden(params, None, tokens_TB)
    return carry, hs_TBH[-1]

"""The training loop: step after step, and what happens between them.

At set steps the loop evaluates, saves and samples; it reads one step's numbers while the next one
runs. Nothing here changes a run's numbers: cut short and resumed, a run gives the same parameters
and the same rows of metrics as one left alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import random

from lstm_jax import sharding
from lstm_jax.models import LanguageModel
from lstm_jax.sampling import FREE, generate
from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.config import TrainConfig
from lstm_jax.training.corpus import Corpus
from lstm_jax.training.metrics import MetricsLog, Row, perplexity
from lstm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from lstm_jax.training.run import RunFolder
from lstm_jax.training.state import (
    Program,
    StepMetrics,
    TrainState,
    evaluate,
    init_state,
    train_step,
)

_PROFILED_STEPS = range(1, 6)
"""Which steps of a process are traced: a few, after the one that compiles."""


class Report(Protocol):
    """Who is told what the loop does."""

    def advance(self, step: int) -> None:
        """Training has come as far as this step."""

    def row(self, row: Row) -> None:
        """A row of metrics was written."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """The model went on from a prompt."""

    def note(self, text: str) -> None:
        """Anything else worth a line."""


class Task(NamedTuple):
    """A run's settings and data, ready to train.

    Attributes:
        config: the settings.
        corpus: the data.
        program: what the step is compiled for.
        total_steps: where the run ends.
        learning_rate: of the number of updates made.
    """

    config: TrainConfig
    corpus: Corpus
    program: Program
    total_steps: int
    learning_rate: Callable[[int], Any]

    @property
    def model(self) -> LanguageModel:
        """The network."""
        return self.program.model


def make_task(config: TrainConfig, corpus: Corpus) -> Task:
    """Puts settings and data together."""
    model = LanguageModel(config.model, len(corpus.vocabulary))
    batches = corpus.training.batches
    total_steps = config.steps or config.epochs * batches
    schedule = learning_rate_schedule(config.optimizer, total_steps)
    program = Program(
        model,
        make_optimizer(config.optimizer, schedule),
        config.sequence_length,
        batches,
    )
    return Task(config, corpus, program, total_steps, schedule)


def first_state(task: Task) -> TrainState:
    """The state before the first step, placed on the run's devices."""
    seed = np.uint32(task.config.seed)
    return _place(task, init_state(task.program, seed, task.config.batch_size))


def restored_state(task: Task, store: CheckpointStore) -> tuple[TrainState, dict[str, Any]]:
    """The newest good checkpoint's state, placed on the run's devices, and its progress."""
    seed = np.uint32(task.config.seed)
    template = jax.eval_shape(lambda: init_state(task.program, seed, task.config.batch_size))
    saved = store.restore(template)
    return _place(task, saved.state), saved.progress


def _place(task: Task, state: TrainState) -> TrainState:
    if task.config.devices == 1:
        return state
    mesh = sharding.data_mesh(task.config.devices)
    carry = sharding.split_batch(mesh, state.carry, axis=0)
    placed: TrainState = jax.device_put(
        dataclasses.replace(state, carry=None), sharding.whole(mesh)
    )
    return dataclasses.replace(placed, carry=carry)


def heldout_loss(task: Task, state: TrainState) -> float:
    """Mean loss of the held-out text, in nats a token, from a zero carry.

    Raises:
        ValueError: nothing is held out.
    """
    heldout = task.corpus.heldout
    if heldout is None:
        raise ValueError("nothing is held out in this run (heldout_share is 0); there is no loss")
    arrays = (heldout.inputs, heldout.targets, heldout.mask)
    sums = evaluate(task.model, task.program.sequence_length, state.params, *arrays)
    return float(sums.loss) / float(sums.weight)


def sample(task: Task, state: TrainState, prompt: str) -> str:
    """The prompt and what the model makes of it; the same at a step however it was reached."""
    vocabulary, config = task.corpus.vocabulary, task.config
    ids = vocabulary.encode_prompt(prompt)
    template = np.concatenate([ids, np.full(config.sample_length, FREE, np.int32)])[:, None]
    filled = generate(
        task.model,
        jax.device_put(state.params, jax.local_devices()[0]),
        template,
        key=random.fold_in(random.key(config.seed), int(state.step)),
        temperature=config.sample_temperature,
        top_n=config.sample_top_n,
    )
    return vocabulary.decode(filled[:, 0])


class _Window:
    """The steps since the last row of metrics; what is pending travels with each checkpoint."""

    def __init__(self, task: Task, log: MetricsLog, report: Report, progress: dict[str, Any]):
        self._task, self._log, self._report = task, log, report
        self._losses: list[float] = list(progress.get("losses", []))
        self._grad_norms: list[float] = list(progress.get("grad_norms", []))
        self._skipped = int(progress.get("skipped", 0))
        now = time.perf_counter()
        self._began = now - float(progress.get("seconds", 0.0))
        self._clock = now  # up to here, time is accounted for
        self._rate = _Rate()

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs to write the same rows, as JSON values."""
        return {
            "losses": self._losses,
            "grad_norms": self._grad_norms,
            "seconds": time.perf_counter() - self._began,
            "skipped": self._skipped,
        }

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training's: it does not count in the rate."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def add(self, step: int, metrics: StepMetrics, heldout: float | None, *, first: bool) -> None:
        """Takes in one step, the process's `first` or not, and writes a row if one is due."""
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)  # waits for the step
        now = time.perf_counter()
        self._rate.count(now - self._clock, compiling=first)
        self._clock = now
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._losses.append(loss)
            self._grad_norms.append(grad_norm)
        else:
            self._skipped += 1
            self._report.note(f"step {step}: the loss or its gradient is not finite; skipped")
        last = step == self._task.total_steps
        if step % self._task.config.log_every == 0 or heldout is not None or last:
            self._write(step, heldout)
        self._report.advance(step)

    def _write(self, step: int, heldout: float | None) -> None:
        task, config = self._task, self._task.config
        loss = _mean(self._losses)
        row: Row = {
            "step": step,
            "epoch": round(step / task.program.batches, 4),
            "loss": loss,
            "perplexity": perplexity(loss),
            "grad_norm": _mean(self._grad_norms),
            "learning_rate": float(task.learning_rate(step - 1 - self._skipped)),
            "skipped_steps": self._skipped,
            "tokens_per_second": config.batch_size * config.sequence_length / self._rate.seconds(),
            "seconds": self._clock - self._began,
        }
        if heldout is not None:
            row |= {"heldout_loss": heldout, "heldout_perplexity": perplexity(heldout)}
        self._log.append(row)
        self._report.row(row)
        self._losses, self._grad_norms, self._rate = [], [], _Rate()


class _Rate:
    """Seconds a step took, compilation apart where there is anything else to go by."""

    def __init__(self) -> None:
        self._compiling: list[float] = []
        self._others: list[float] = []

    def count(self, seconds: float, *, compiling: bool) -> None:
        (self._compiling if compiling else self._others).append(seconds)

    def seconds(self) -> float:
        return max(1e-9, _mean(self._others or self._compiling))


def train(
    task: Task,
    state: TrainState,
    folder: RunFolder,
    store: CheckpointStore,
    report: Report,
    *,
    progress: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    profile_dir: str | None = None,
) -> TrainState:
    """Trains to the task's last step, or until `should_stop()`; either way the state is saved.

    Args:
        task: settings and data.
        state: where to begin; donated.
        folder: where the metrics go.
        store: where the checkpoints go.
        report: who is told.
        progress: what the checkpoint that `state` came from says of it.
        should_stop: asked after each step.
        profile_dir: where to write a JAX trace of a few steps.

    Returns:
        The last state.
    """
    step = first = int(state.step)
    log = MetricsLog(folder.metrics, step)
    window = _Window(task, log, report, progress or {})
    feed = _Feed(task)
    pending: StepMetrics | None = None
    stopped = False
    try:
        with ExitStack() as profiler:
            while step < task.total_steps and not stopped:
                if profile_dir and step - first == _PROFILED_STEPS.start:
                    profiler.enter_context(jax.profiler.trace(profile_dir))
                state, metrics = train_step(task.program, state, *feed.rows(step))
                if pending:
                    window.add(step, pending, None, first=step == first + 1)
                step, pending = step + 1, metrics
                if step - first == _PROFILED_STEPS.stop:
                    metrics.loss.block_until_ready()
                    profiler.close()
                stopped = should_stop()
                if stopped or _is_event(task, step):
                    metrics.loss.block_until_ready()
                    with window.aside():
                        heldout = _heldout_if_due(task, state, step)
                    window.add(step, metrics, heldout, first=step == first + 1)
                    pending = None
                    with window.aside():
                        if stopped or _due(task, task.config.checkpoint_every, step):
                            _save(store, state, window.progress(), heldout, report)
                        if _due(task, task.config.sample_every, step):
                            _show_samples(task, state, step, report)
        store.wait()
    finally:
        log.close()
    return state


class _Feed:
    """Gives the device the rows of the corpus: all of them once, or a stretch at a time."""

    def __init__(self, task: Task) -> None:
        self._tokens = task.corpus.training.tokens
        self._times, self._batches = task.config.sequence_length, task.program.batches
        self._mesh = sharding.data_mesh(task.config.devices)
        budget = task.config.corpus_on_device_mb * 2**20
        affordable = int(budget // (self._times * self._tokens[0].nbytes))
        self._stretch = min(max(1, affordable), self._batches)
        self._first = 0
        self._rows: jax.Array | None = None

    def rows(self, step: int) -> tuple[jax.Array, np.int32]:
        """Rows that hold the step's batch, and which row of the corpus comes first."""
        batch = step % self._batches
        if self._rows is None or not self._first <= batch < self._first + self._stretch:
            self._first = min(batch, self._batches - self._stretch)
            first = self._first * self._times
            stretch = self._tokens[first : first + self._stretch * self._times + 1]
            self._rows = sharding.split_batch(self._mesh, stretch, axis=1)
        return self._rows, np.int32(self._first * self._times)


def _is_event(task: Task, step: int) -> bool:
    config = task.config
    intervals = (config.evaluate_every, config.checkpoint_every, config.sample_every)
    return any(_due(task, interval, step) for interval in intervals)


def _due(task: Task, interval: int, step: int) -> bool:
    """Whether something that recurs at this interval, and at the end, falls on this step."""
    return step == task.total_steps or (interval > 0 and step % interval == 0)


def _heldout_if_due(task: Task, state: TrainState, step: int) -> float | None:
    if task.corpus.heldout is None or not _due(task, task.config.evaluate_every, step):
        return None
    return heldout_loss(task, state)


def _show_samples(task: Task, state: TrainState, step: int, report: Report) -> None:
    if task.config.sample_every:
        for prompt in task.config.sample_prompts:
            report.sample(step, prompt, sample(task, state, prompt))


def _save(
    store: CheckpointStore,
    state: TrainState,
    progress: dict[str, Any],
    heldout: float | None,
    report: Report,
) -> None:
    """Saves; that the save before this one failed is told, and no reason to stop training."""
    step = int(state.step)
    try:
        store.wait()
    except CheckpointError as failure:
        report.note(str(failure))
    store.save(step, state, progress, heldout_loss=heldout)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan

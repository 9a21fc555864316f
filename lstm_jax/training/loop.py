"""The training loop: step after step, and what happens between them.

At set steps the loop evaluates, saves and samples; it reads one step's numbers while the next one
runs. Nothing here changes a run's numbers: cut short and resumed, a run gives the same parameters
and the same rows of metrics as one left alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import jax

from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.metrics import MetricsLog, Row
from lstm_jax.training.report import Report
from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.state import StepMetrics, TrainState, train_step
from lstm_jax.training.task import Task, heldout_metrics
from lstm_jax.training.window import Window

_PROFILED_STEPS = range(1, 6)
"""Which steps of a process are traced: a few, after the one that compiles."""


class NotFiniteError(ValueError):
    """Training gave up on losses or gradients that are not finite; says how to repeat the last."""


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

    Raises:
        NotFiniteError: from too many steps in a row nothing could be learnt.
    """
    return _Training(task, folder, store, report, progress or {}, should_stop).run(
        state, profile_dir
    )


class _Training:
    """One call of `train`."""

    def __init__(
        self,
        task: Task,
        folder: RunFolder,
        store: CheckpointStore,
        report: Report,
        progress: dict[str, Any],
        should_stop: Callable[[], bool],
    ) -> None:
        self._task, self._folder, self._store, self._report = task, folder, store, report
        self._progress, self._should_stop = progress, should_stop
        self._patience = _Patience(task.config.patience, progress)

    def run(self, state: TrainState, profile_dir: str | None) -> TrainState:
        task, step = self._task, int(state.step)
        first = step
        log = MetricsLog(self._folder.metrics, step, self._progress.get("log"))
        self._window = Window(task, log, self._report, self._progress)
        feed = task.system.feed()
        pending: StepMetrics | None = None
        stopped = self._patience.is_over
        try:
            with ExitStack() as profiler:
                while step < task.total_steps and not stopped:
                    if pending and self._window.skipped_in_a_row:
                        self._window.add(step, pending, None, first=False)
                        pending = None
                    self._give_up_on_endless_skipping(state, step)
                    if profile_dir and step - first == _PROFILED_STEPS.start:
                        profiler.enter_context(jax.profiler.trace(profile_dir))
                    state, metrics = train_step(task.program, state, feed(step))
                    if pending:
                        self._window.add(step, pending, None, first=step == first + 1)
                    step, pending = step + 1, metrics
                    if step - first == _PROFILED_STEPS.stop:
                        metrics.loss.block_until_ready()
                        profiler.close()
                    stopped = self._should_stop()
                    if stopped or _is_event(task, step):
                        stopped |= self._event(state, step, metrics, first, stopped)
                        pending = None
            self._store.wait()
            _finish(log)
        finally:
            log.close()
        return state

    def _event(
        self, state: TrainState, step: int, metrics: StepMetrics, first: int, stopped: bool
    ) -> bool:
        """Evaluates, saves and samples, as is due; whether training has gone on long enough."""
        task, config = self._task, self._task.config
        metrics.loss.block_until_ready()
        heldout: Row = {}
        with self._window.aside():
            if task.system.heldout_batch_size and _due(task, config.evaluate_every, step):
                heldout = heldout_metrics(task, state)
        self._window.add(step, metrics, heldout, first=step == first + 1)
        if heldout:
            self._patience.count(heldout["heldout_loss"])
        with self._window.aside():
            if stopped or self._patience.is_over or _due(task, config.checkpoint_every, step):
                self._save(state, step, heldout.get("heldout_loss"))
            if config.sample_every and _due(task, config.sample_every, step):
                self._show_samples(state, step)
            if not (stopped or self._patience.is_over or step == task.total_steps):
                self._await_save()
        if self._patience.is_over:
            self._report.note(
                f"step {step}: {config.patience} evaluations without a better held-out loss; done"
            )
        return self._patience.is_over

    def _give_up_on_endless_skipping(self, state: TrainState, step: int) -> None:
        """Raises NotFiniteError once too many steps in a row were skipped.

        None of them changed the parameters, so the state before the last of them is at hand.
        """
        skipped = self._window.skipped_in_a_row
        if not 0 < self._task.config.skipped_at_most <= skipped:
            return
        self._save(state, step, None)
        batches = self._task.program.batches
        before = dataclasses.replace(
            state,
            step=state.step - 1,
            batch=(state.batch - 1) % batches,
            skipped=state.skipped - 1,
        )
        dump = self._folder.nonfinite
        copy_description(self._folder, dump)
        with CheckpointStore(dump.checkpoints) as store:
            store.save(step - 1, before, {})
        self._store.wait()
        raise NotFiniteError(
            f"the loss or its gradient was not finite {skipped} times in a row, the last time at "
            f"step {step}, which --run-dir {dump.path} --resume --steps {step} repeats; try a "
            "lower learning rate or clip_norm, or other data"
        )

    def _save(self, state: TrainState, step: int, heldout: float | int | None) -> None:
        progress = self._window.progress() | self._patience.progress()
        self._store.save(step, state, progress, heldout_loss=heldout)

    def _await_save(self) -> None:
        """Training goes on once the save is on disk: what a kill takes is one interval at most.

        That the save failed is told, and no reason to stop training.
        """
        try:
            self._store.wait()
        except CheckpointError as failure:
            self._report.note(str(failure))

    def _show_samples(self, state: TrainState, step: int) -> None:
        params = jax.device_put(state.params, jax.local_devices()[0])
        for prompt, text in self._task.system.samples(params, step):
            self._report.sample(step, prompt, text)


def _finish(log: MetricsLog) -> None:
    try:
        log.flush()
    except OSError as error:
        raise ValueError(
            f"the last rows of metrics could not be written ({error}); free space there, then "
            "resume: the checkpoint has them"
        ) from None


class _Patience:
    """Counts evaluations without a better held-out loss."""

    def __init__(self, limit: int, progress: dict[str, Any]) -> None:
        self._limit = limit
        self._best = float(progress.get("best_heldout_loss", math.inf))
        self._since = int(progress.get("evaluations_since_best", 0))

    def count(self, loss: float | int | None) -> None:
        if loss is not None and loss < self._best:
            self._best, self._since = float(loss), 0
        else:
            self._since += 1

    @property
    def is_over(self) -> bool:
        return 0 < self._limit <= self._since

    def progress(self) -> dict[str, Any]:
        known = {} if math.isinf(self._best) else {"best_heldout_loss": self._best}
        return known | {"evaluations_since_best": self._since}


def _is_event(task: Task, step: int) -> bool:
    config = task.config
    intervals = (config.evaluate_every, config.checkpoint_every, config.sample_every)
    return any(_due(task, interval, step) for interval in intervals)


def _due(task: Task, interval: int, step: int) -> bool:
    """Whether something that recurs at this interval, and at the end, falls on this step."""
    steps = task.config.steps_of(interval, task.program.batches)
    return step == task.total_steps or (steps > 0 and step % steps == 0)

"""The training loop: step after step, and what happens between them.

At set steps the loop evaluates, samples and saves; it reads one step's numbers while the next one
runs. Nothing here changes a run's numbers: cut short and resumed, a run gives the same parameters
and the same rows of metrics as one left alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import jax

from lstm_jax.text.checks import one_line
from lstm_jax.training.checkpoint import CheckpointError, CheckpointStore
from lstm_jax.training.metrics import MetricsLog, Row
from lstm_jax.training.report import Report
from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.state import StepMetrics, TrainState, train_step
from lstm_jax.training.task import Task, heldout_metrics
from lstm_jax.training.window import Window

_PROFILED_STEPS = range(1, 6)
"""Which steps of a process are traced: a few, after the one that compiles."""

_CHECKPOINT, _EVALUATION, _SAMPLES = "checkpoint", "evaluation", "samples"
"""What is done at set steps."""


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
        should_stop: asked after each step, and between the batches of an evaluation and the texts
            of a sample: what is given up then is done when the run goes on.
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
        feed = task.system.feed()
        log = MetricsLog(self._folder.metrics, step, self._progress.get("log"))
        self._window = Window(task, log, self._report, self._progress)
        pending: StepMetrics | None = None
        try:
            self._finish_event(state, step)
            stopped = self._patience.is_over or self._should_stop()
            if stopped and self._store.is_empty:
                self._save(state, step)
            with ExitStack() as profiler:
                while step < task.total_steps and not stopped:
                    if pending and self._window.skipped_in_a_row:
                        self._window.add(step, pending, first=False)
                        pending = None
                    self._give_up_on_endless_skipping(state, step)
                    if profile_dir and step - first == _PROFILED_STEPS.start:
                        profiler.enter_context(jax.profiler.trace(profile_dir))
                    state, metrics = train_step(task.program, state, feed(step))
                    if pending:
                        self._window.add(step, pending, first=step == first + 1)
                    step, pending = step + 1, metrics
                    if step - first == _PROFILED_STEPS.stop:
                        metrics.loss.block_until_ready()
                        profiler.close()
                    stopped, due = self._should_stop(), _due(task, step)
                    if stopped or due:
                        self._window.add(
                            step,
                            metrics,
                            first=step == first + 1,
                            to_be_evaluated=_EVALUATION in due,
                        )
                        stopped = self._event(state, step, due)
                        pending = None
            _finish(log)
        finally:
            log.close()
        return state

    def _event(self, state: TrainState, step: int, due: set[str]) -> bool:
        """Evaluates, samples and saves, as is due; whether training ends here.

        What a signal cuts short is left to the run that goes on from here: see `_finish_event`.
        """
        left, heldout = due - {_CHECKPOINT}, Row()
        if _EVALUATION in due:
            with self._window.aside():
                heldout = heldout_metrics(self._task, state, self._should_stop)
            if heldout:
                left.remove(_EVALUATION)
                self._window.write(step, heldout)
                self._patience.count(heldout["heldout_loss"])
        with self._window.aside():
            if _SAMPLES in due and self._show_samples(state, step):
                left.remove(_SAMPLES)
            stopped = bool(left) or self._should_stop() or self._patience.is_over
            if stopped or _CHECKPOINT in due:
                try:
                    self._save(state, step, heldout.get("heldout_loss"), left)
                except CheckpointError as failure:
                    if stopped or step == self._task.total_steps:
                        raise
                    self._report.note(str(failure))
        if self._patience.is_over:
            self._report.note(
                f"step {step}: {self._task.config.patience} evaluations without a better held-out "
                "loss; done"
            )
        return stopped

    def _finish_event(self, state: TrainState, step: int) -> None:
        """Does what a signal left undone at the step that the run goes on from."""
        left = set(self._progress.get("left", ()))
        if _EVALUATION in left:
            self._event(state, step, left | _due(self._task, step))
        elif _SAMPLES in left:
            with self._window.aside():
                self._show_samples(state, step)

    def _give_up_on_endless_skipping(self, state: TrainState, step: int) -> None:
        """Raises NotFiniteError once too many steps in a row were skipped.

        None of them changed the parameters, so the state before the last of them is at hand.
        """
        skipped = self._window.skipped_in_a_row
        if not 0 < self._task.config.skipped_at_most <= skipped:
            return
        self._save(state, step)
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
        raise NotFiniteError(
            f"the loss or its gradient was not finite {skipped} times in a row, the last time at "
            f"step {step}, which --run-dir {dump.path} --resume --steps {step} repeats; try a "
            "lower learning rate or clip_norm, or other data"
        )

    def _save(
        self,
        state: TrainState,
        step: int,
        heldout: float | int | None = None,
        left: Iterable[str] = (),
    ) -> None:
        progress = self._window.progress() | self._patience.progress() | {"left": sorted(left)}
        self._store.save(step, state, progress, heldout_loss=heldout)

    def _show_samples(self, state: TrainState, step: int) -> bool:
        """All samples, or none; False if a signal cut them short."""
        texts: list[tuple[str, str]] = []
        try:
            params = jax.device_put(state.params, jax.local_devices()[0])
            samples = self._task.system.samples(params, step)
            while not self._should_stop():
                text = next(samples, None)
                if text is None:
                    for prompt, written in texts:
                        self._report.sample(step, prompt, written)
                    return True
                texts.append(text)
        except Exception as error:  # no memory for them, say; training can do without
            self._report.note(
                f"step {step}: no samples ({type(error).__name__}: {one_line(error)})"
            )
            return True
        return False


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


def _due(task: Task, step: int) -> set[str]:
    """What is to be done after a step: at its intervals, and at the end."""
    config = task.config
    intervals = {_CHECKPOINT: config.checkpoint_every}
    if task.system.heldout_batch_size:
        intervals[_EVALUATION] = config.evaluate_every
    if config.sample_every:
        intervals[_SAMPLES] = config.sample_every
    found = set()
    for name, interval in intervals.items():
        steps = config.steps_of(interval, task.program.batches)
        if step == task.total_steps or (steps > 0 and step % steps == 0):
            found.add(name)
    return found

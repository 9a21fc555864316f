"""The training loop, with evaluations, samples and checkpoints at given steps.

A step's results are read while the next step runs. None of this changes a run's numbers: an
interrupted and resumed run gives the same parameters and rows of metrics as an uninterrupted one.
"""

import math
import os
from collections.abc import Callable, Set
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_jax import sharding
from lstm_jax.files import one_line
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.leaves import CheckpointError
from lstm_jax.training.log import Meter, MetricsLog, Report, Row
from lstm_jax.training.optimizer import averaged, averaging
from lstm_jax.training.processes import gathered, is_first, together
from lstm_jax.training.run import RunFolder, copy_description
from lstm_jax.training.state import StepMetrics, TrainState, train_step
from lstm_jax.training.task import Task, heldout_metrics

_PROFILED_STEPS = range(1, 6)
"""Steps of a process to trace: a few, after the one that compiles."""

_CHECKPOINT, _EVALUATION, _SAMPLES = "checkpoint", "evaluation", "samples"
"""Work that is due at certain steps."""

_BEFORE_THE_ROW = frozenset((_EVALUATION, _SAMPLES))
"""Work that belongs to a step's row; a signal may interrupt it."""


class NotFiniteError(ValueError):
    """Training gave up on non-finite losses or gradients; says how to repeat the last step."""


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
    """Train to the task's last step, or until `should_stop()`; the state is saved in either case.

    `state`, which is donated, comes from the checkpoint that `progress` was saved with.
    `should_stop` is asked after each step, and between batches of an evaluation and texts of a
    sample; interrupted ones are done when the run is resumed. A JAX trace of a few steps goes to
    `profile_dir`. Raises NotFiniteError if too many steps in a row were skipped.
    """
    training = _Training(task, folder, store, report, progress or {}, should_stop)
    return training.run(state, profile_dir)


@dataclass
class _Training:
    """One call of `train`."""

    task: Task
    folder: RunFolder
    store: CheckpointStore
    report: Report
    progress: InitVar[dict[str, Any]]
    should_stop: Callable[[], bool]
    skipped_in_a_row: int = 0
    is_stopping: bool = False

    def __post_init__(self, progress: dict[str, Any]) -> None:
        config = self.task.config
        self.meter = Meter(progress)
        self.held_out = _HeldOut(config.patience, config.optimizer.average_after, progress)

    def run(self, state: TrainState, profile_dir: str | None) -> TrainState:
        task, feed, alone = self.task, self.task.system.feed(), jax.process_count() == 1
        step = self.first = int(state.step)
        # Rewrites the row of this step if its checkpoint was saved without it.
        rows = self.folder.metrics if is_first() else Path(os.devnull)
        self.log = MetricsLog(rows, step if self.meter.is_empty else step - 1)
        pending: StepMetrics | None = None
        try:
            due = _due(task, step)
            if self.held_out.is_over:
                self._note_end(step)
            if not self.meter.is_empty and due & _BEFORE_THE_ROW:
                state, _ = self._event(state, step, due)
            stopped = self.held_out.is_over or self._asked()
            if stopped and self.store.is_empty:
                self._save(state, step)
            with ExitStack() as profiler:
                while step < task.total_steps and not stopped:
                    if pending and self.skipped_in_a_row:
                        self._finish_step(step, pending)
                        pending = None
                    self._limit_skips(state, step)
                    if profile_dir and step - self.first == _PROFILED_STEPS.start:
                        self._traced(jax.profiler.start_trace, profile_dir)
                        profiler.callback(self._traced, jax.profiler.stop_trace)
                    state, metrics = train_step(task.program, state, feed(step), self._stop_flags())
                    if pending:
                        self._finish_step(step, pending)
                    step, pending = step + 1, metrics
                    if step - self.first == _PROFILED_STEPS.stop:
                        metrics.loss.block_until_ready()
                        profiler.close()
                    due = _due(task, step)
                    stopped = self.should_stop() if alone else self.is_stopping
                    if stopped or due:
                        self._finish_step(step, metrics, due)
                        state, stopped = self._event(state, step, due)
                        pending = None
        finally:
            self.log.close()
        return state

    def _finish_step(self, step: int, metrics: StepMetrics, due: Set[str] = frozenset()) -> None:
        """Wait for a step and read its results; its row waits for other work that is due."""
        found = jax.device_get(metrics)
        self.is_stopping |= bool(found.stopping)
        parts: dict[str, list[float]] | None = None
        if math.isfinite(found.loss) and math.isfinite(found.grad_norm):
            parts = {name: [*map(float, part)] for name, part in found.sums.parts.items()}
        compiled = step == self.first + 1
        self.meter.add(parts, float(found.grad_norm), float(found.sums.tokens), compiled=compiled)
        self.skipped_in_a_row = 0 if parts else self.skipped_in_a_row + 1
        if not parts:
            self.report.note(f"step {step}: the loss or its gradient is not finite; skipped")
        if not due & _BEFORE_THE_ROW:
            self._write_row(step, Row())
        self.report.advance(step)

    def _write_row(self, step: int, heldout: Row) -> None:
        """Write the row of the steps since the last one, if it is due."""
        task, batches = self.task, self.task.program.batches
        every = task.config.steps_of(task.config.log_every, batches)
        if step % every and step != task.total_steps and not heldout:
            return
        rate = float(task.learning_rate(step - 1 - self.meter.skipped))
        row: Row = {"step": step, "epoch": round(step / batches, 4)}
        row |= self.meter.row(rate, with_perplexity=task.system.has_perplexity) | heldout
        try:
            self.log.append(row)
        except OSError as error:
            self.report.note(
                f"step {step}: its row of metrics could not be written ({error}); it is kept, and "
                "written once there is space"
            )
        self.report.row(row)

    def _event(self, state: TrainState, step: int, due: frozenset[str]) -> tuple[TrainState, bool]:
        """Evaluate, sample and save as due; returns the state, and whether training ends here.

        If a signal interrupts the evaluation or samples, the step's row is not written, and both
        are done when the run is resumed.
        """
        done, heldout = True, Row()
        texts: list[tuple[str, str]] | None = []
        with self.meter.paused():
            if _EVALUATION in due:
                heldout = heldout_metrics(self.task, state, self._asked)
                done = bool(heldout)
            if done and _SAMPLES in due:
                texts = self._samples(state, step)
                done = texts is not None
        if done and due & _BEFORE_THE_ROW:
            self._write_row(step, heldout)
        for prompt, written in texts or ():
            self.report.sample(step, prompt, written)
        if done and heldout and self.held_out.begins_averaging(heldout["heldout_loss"]):
            state = replace(state, opt_state=averaging(state.opt_state))
            what = "the held-out loss no longer falls; weights are averaged from here on"
            self.report.note(f"step {step}: {what}")
        stopped = not done or self._asked() or self.held_out.is_over
        if stopped or _CHECKPOINT in due:
            try:
                with self.meter.paused():
                    self._save(state, step, heldout.get("heldout_loss") if done else None)
            except CheckpointError as failure:
                if stopped or step == self.task.total_steps:
                    raise
                self.report.note(str(failure))
        if self.held_out.is_over:
            self._note_end(step)
        return state, stopped

    def _note_end(self, step: int) -> None:
        number, cure = self.task.config.patience, "a larger --patience, or 0, goes on"
        self.report.note(
            f"step {step}: {number} evaluations without a better held-out loss; done ({cure})"
        )

    def _limit_skips(self, state: TrainState, step: int) -> None:
        """Raise NotFiniteError once too many steps in a row were skipped.

        None of them changed the parameters, so the state before the last of them is available.
        """
        skipped = self.skipped_in_a_row
        if not 0 < self.task.config.skipped_at_most <= skipped:
            return
        self._save(state, step)
        batches = self.task.program.batches
        before = replace(
            state, step=state.step - 1, batch=(state.batch - 1) % batches, skipped=state.skipped - 1
        )
        dump = self.folder.nonfinite
        together(lambda: copy_description(self.folder, dump), first_only=True)
        CheckpointStore(dump.checkpoints).save(step - 1, before, {})
        raise NotFiniteError(
            f"the loss or its gradient was not finite {skipped} times in a row, the last time at "
            f"step {step}, which --run-dir {dump.path} --resume --steps {step} repeats; try a "
            "lower learning rate or clip_norm, or other data"
        )

    def _save(self, state: TrainState, step: int, heldout: float | None = None) -> None:
        """Save the state once all rows up to it are in the log, as a resumed run requires."""
        try:
            together(self.log.flush)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"step {step} was not saved, for its rows of metrics could not be written "
                f"({error}); free space there, then save again"
            ) from None
        progress = self.meter.progress() | self.held_out.progress()
        self.store.save(step, state, progress, heldout_loss=heldout)

    def _samples(self, state: TrainState, step: int) -> list[tuple[str, str]] | None:
        """Prompts with the model's texts, or None if a signal interrupted them."""
        params = averaged(state.opt_state, state.params)
        params = sharding.local(self.task.program.mesh, params)
        texts = self._written(params, step) if is_first() else []
        return None if "cut" in gathered("cut" if texts is None else "") else texts

    def _written(self, params: Any, step: int) -> list[tuple[str, str]] | None:
        texts: list[tuple[str, str]] = []
        try:
            samples = self.task.system.samples(params, step)
            while not self.should_stop():
                text = next(samples, None)
                if text is None:
                    return texts
                texts.append(text)
        except Exception as error:  # such as no memory; training can go on without
            why = f"{type(error).__name__}: {one_line(error)}"
            self.report.note(f"step {step}: no samples ({why})")
            return []
        return None

    def _traced(self, act: Callable[..., None], *given: str) -> None:
        try:
            act(*given)
        except Exception as error:  # such as a bad folder; training needs no trace
            self.report.note(f"the trace is incomplete ({one_line(error)})")

    def _asked(self) -> bool:
        return "stop" in gathered("stop" if self.should_stop() else "")

    def _stop_flags(self) -> jax.Array | None:
        """With several processes, this one's wish to stop, which a step shares with all."""
        if jax.process_count() == 1:
            return None
        mesh = self.task.program.mesh
        return sharding.put(mesh, np.full(mesh.size, self.should_stop(), "f4"), 0)


class _HeldOut:
    """What the held-out losses so far decide: whether to stop, and when averaging begins."""

    def __init__(self, patience: int, window: int, progress: dict[str, Any]) -> None:
        self._patience, self._window = patience, window
        self._best = float(progress.get("best_heldout_loss", math.inf))
        self._since = int(progress.get("evaluations_since_best", 0))
        self._losses: list[float] | None = progress.get("heldout_losses", [])

    @property
    def is_over(self) -> bool:
        """Whether `patience` evaluations in a row were no better; never with a patience of 0."""
        return 0 < self._patience <= self._since

    def begins_averaging(self, loss: float) -> bool:
        """Add a loss; True, once, if it is above the lowest of those before the last `window`.

        Never with a window of 0.
        """
        self._since += 1
        if loss < self._best:
            self._best, self._since = loss, 0
        if not self._window or self._losses is None:
            return False
        before = self._losses[: -self._window]
        if before and loss > min(before):
            self._losses = None
            return True
        self._losses = [*([min(before)] if before else ()), *self._losses[-self._window :], loss]
        return False

    def progress(self) -> dict[str, Any]:
        known: dict[str, Any] = {"evaluations_since_best": self._since}
        known |= {} if math.isinf(self._best) else {"best_heldout_loss": self._best}
        return known | ({"heldout_losses": self._losses} if self._window else {})


def _due(task: Task, step: int) -> frozenset[str]:
    """What is due after a step, by its intervals or at the end."""
    config = task.config
    intervals = {_CHECKPOINT: config.checkpoint_every}
    if task.system.heldout_batch_size:
        intervals[_EVALUATION] = config.evaluate_every
    if config.sample_every:
        intervals[_SAMPLES] = config.sample_every
    steps = {name: config.steps_of(each, task.program.batches) for name, each in intervals.items()}
    ends = step == task.total_steps
    return frozenset(n for n, each in steps.items() if ends or (each > 0 and step % each == 0))
